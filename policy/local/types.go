package local

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unsafe"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"cardea/api"
)

// A universe tells CEL of the structs of package api: their fields by JSON name,
// the types of these, and how to read them. It is built once, by reflection over
// api.Context, and read only afterwards.
//
// Objects travel through an evaluation as pointers to their structs; only one
// that becomes a value of its own (an element of a list, say) is wrapped.
type universe struct {
	types.Provider // of the types that CEL has by itself
	base           types.Adapter
	byName         map[string]*structType
	byGo           map[reflect.Type]*structType
}

// A structType is what CEL knows of one Go struct.
type structType struct {
	*types.Type
	pointer reflect.Type   // to the Go struct
	word    unsafe.Pointer // pointer, as values of an interface say it
	// path is how a condition reaches it (ctx.request.tls); "" if in several ways.
	path   string
	fields map[string]*field
	notYet []string
}

// A field is one field of a struct.
type field struct {
	types.FieldType
	in       *structType
	name     string
	offset   uintptr // within the struct
	optional bool    // a pointer, or a list that is a field of ctx: nil is absent
	protocol bool    // absent when the request is of another protocol
	enum     *enum
}

// An enum is the set of values of a string type.
type enum struct{ values, later []string }

// absent is the error of reading through an optional object that is not there.
type absent struct{ *field }

func (a absent) Error() string {
	name := a.name
	if a.in.path != "" {
		name = a.in.path + "." + name
	}
	if a.protocol {
		return name + " is absent: the request is of another protocol"
	}
	return name + " is absent"
}

func newUniverse() *universe {
	r, err := types.NewRegistry()
	if err != nil {
		panic("policy: CEL's own types are inconsistent: " + err.Error())
	}
	u := &universe{Provider: r, base: r, byName: map[string]*structType{}, byGo: map[reflect.Type]*structType{}}
	u.add(reflect.TypeFor[api.Context](), "ctx")
	return u
}

// add returns the type of the Go struct t, after entering it and what it
// reaches.
func (u *universe) add(t reflect.Type, path string) *structType {
	if s, ok := u.byGo[t]; ok {
		if s.path != path {
			s.path = ""
		}
		return s
	}
	name := "cardea." + t.Name()
	s := &structType{Type: types.NewObjectType(name), pointer: reflect.PointerTo(t), path: path, fields: map[string]*field{}}
	s.word = wordOf(nilPointer(t))
	u.byGo[t], u.byName[name] = s, s
	for _, f := range reflect.VisibleFields(t) {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous || !f.IsExported() || tag == "" || tag == "-":
		case f.Type == reflect.TypeFor[api.NotYet]():
			s.notYet = append(s.notYet, tag)
		default:
			s.fields[tag] = u.field(s, tag, f)
		}
	}
	return s
}

func (u *universe) field(s *structType, name string, f reflect.StructField) *field {
	c := &field{
		in: s, name: name, offset: offsetOf(s.pointer.Elem(), f.Index),
		optional: f.Type.Kind() == reflect.Pointer || f.Type.Kind() == reflect.Slice && s.path == varContext,
		protocol: f.Tag.Get("cardea") == "protocol",
		enum:     enumOf(f.Type),
	}
	c.Type = u.celType(f.Type, s.path+"."+name)
	c.IsSet = func(target any) bool {
		p, ok := c.of(target)
		return ok && !reflect.NewAt(f.Type, p).Elem().IsZero()
	}
	read := reader(f.Type)
	c.GetFrom = func(target any) (any, error) {
		p, ok := c.of(target)
		if !ok {
			return nil, fmt.Errorf("%s is not a field of %T", name, target)
		}
		if c.optional && *(*unsafe.Pointer)(p) == nil {
			return nil, absent{c}
		}
		return read(p), nil
	}
	return c
}

// of returns the address of the field in a pointer to the struct. It reports
// false if target is anything else: the offset is good for that type only.
func (f *field) of(target any) (unsafe.Pointer, bool) {
	t := (*eface)(unsafe.Pointer(&target))
	if t.word != f.in.word || t.data == nil {
		return nil, false
	}
	return unsafe.Add(t.data, f.offset), true
}

// An eface is how Go lays out a value of type any that holds a pointer: a word for
// its type, and the pointer. To look at it directly instead of through reflect
// halves the time that a decision takes to read a field.
type eface struct{ word, data unsafe.Pointer }

func wordOf(v any) unsafe.Pointer { return (*eface)(unsafe.Pointer(&v)).word }

// nilPointer returns the nil pointer to a type.
func nilPointer(t reflect.Type) any { return reflect.Zero(reflect.PointerTo(t)).Interface() }

// celType returns the CEL type of a Go type.
func (u *universe) celType(t reflect.Type, path string) *types.Type {
	switch t {
	case reflect.TypeFor[time.Time]():
		return types.TimestampType
	case reflect.TypeFor[time.Duration]():
		return types.DurationType
	}
	switch t.Kind() {
	case reflect.String:
		return types.StringType
	case reflect.Bool:
		return types.BoolType
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return types.IntType
	case reflect.Float32, reflect.Float64:
		return types.DoubleType
	case reflect.Interface:
		return types.DynType
	case reflect.Pointer:
		return u.celType(t.Elem(), path)
	case reflect.Struct:
		return u.add(t, path).Type
	case reflect.Map:
		return types.NewMapType(types.StringType, u.celType(t.Elem(), ""))
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return types.BytesType
		}
		return types.NewListType(u.celType(t.Elem(), ""))
	}
	panic("policy: no CEL type for the Go type " + t.String())
}

// offsetOf returns where a field is within its struct.
func offsetOf(t reflect.Type, index []int) (offset uintptr) {
	for _, i := range index {
		f := t.Field(i)
		offset, t = offset+f.Offset, f.Type
	}
	return offset
}

// reader returns how a field of a Go type is read, given its address: as a CEL
// value where that costs no more, otherwise as what the attributes of cel-go take
// without reflection (pointers to structs, plain maps and slices).
func reader(t reflect.Type) func(unsafe.Pointer) any {
	switch t {
	case reflect.TypeFor[time.Time]():
		return func(p unsafe.Pointer) any { return types.Timestamp{Time: *(*time.Time)(p)} }
	case reflect.TypeFor[time.Duration]():
		return func(p unsafe.Pointer) any { return types.Duration{Duration: *(*time.Duration)(p)} }
	}
	switch t.Kind() {
	case reflect.String:
		return func(p unsafe.Pointer) any { return types.String(*(*string)(p)) }
	case reflect.Bool:
		return func(p unsafe.Pointer) any { return types.Bool(*(*bool)(p)) }
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return func(p unsafe.Pointer) any { return types.Int(reflect.NewAt(t, p).Elem().Int()) }
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return func(p unsafe.Pointer) any { return types.Int(int64(reflect.NewAt(t, p).Elem().Uint())) }
	case reflect.Struct:
		none := nilPointer(t)
		return func(p unsafe.Pointer) any {
			v := none
			(*eface)(unsafe.Pointer(&v)).data = p
			return v
		}
	case reflect.Pointer:
		read := reader(t.Elem())
		return func(p unsafe.Pointer) any { return read(*(*unsafe.Pointer)(p)) }
	case reflect.Map:
		// The named type Attrs becomes map[string]any, which cel-go knows.
		t = reflect.MapOf(t.Key(), t.Elem())
	case reflect.Slice:
		if t = reflect.SliceOf(t.Elem()); t == reflect.TypeFor[[]string]() {
			return func(p unsafe.Pointer) any { return types.NewStringList(types.DefaultTypeAdapter, *(*[]string)(p)) }
		}
	}
	return func(p unsafe.Pointer) any { return reflect.NewAt(t, p).Elem().Interface() }
}

func enumOf(t reflect.Type) *enum {
	e, ok := reflect.Zero(t).Interface().(api.Enum)
	if !ok || t.Kind() != reflect.String {
		return nil
	}
	c := &enum{values: e.Values()}
	if l, ok := e.(api.LaterEnum); ok {
		c.later = l.Later()
	}
	if t == reflect.TypeFor[api.Mode]() {
		// No input may have it, and the API's own Service does.
		c.values = append(slices.Clone(c.values), string(api.ModeAPI))
	}
	return c
}

// FindStructType implements types.Provider.
func (u *universe) FindStructType(name string) (*types.Type, bool) {
	if s, ok := u.byName[name]; ok {
		return types.NewTypeTypeWithParam(s.Type), true
	}
	return u.Provider.FindStructType(name)
}

// FindStructFieldNames implements types.Provider.
func (u *universe) FindStructFieldNames(name string) ([]string, bool) {
	if s, ok := u.byName[name]; ok {
		return s.names(), true
	}
	return u.Provider.FindStructFieldNames(name)
}

func (s *structType) names() []string {
	names := make([]string, 0, len(s.fields))
	for n := range s.fields {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// FindStructFieldType implements types.Provider.
func (u *universe) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	s, ok := u.byName[name]
	if !ok {
		return u.Provider.FindStructFieldType(name, field)
	}
	f, ok := s.fields[field]
	if !ok {
		return nil, false
	}
	return &f.FieldType, true
}

// NewValue implements types.Provider: conditions make no objects.
func (u *universe) NewValue(name string, fields map[string]ref.Val) ref.Val {
	if _, ok := u.byName[name]; ok {
		return types.NewErr("an object of type %s cannot be made", name)
	}
	return u.Provider.NewValue(name, fields)
}

// NativeToValue implements types.Adapter.
func (u *universe) NativeToValue(v any) ref.Val {
	switch v := v.(type) {
	case ref.Val:
		return v
	case string, bool, []string, map[string]string, map[string]any, []any, nil:
		return u.base.NativeToValue(v)
	}
	t := reflect.TypeOf(v)
	switch t.Kind() {
	case reflect.Pointer:
		if s, ok := u.byGo[t.Elem()]; ok {
			return &object{u: u, structType: s, pointer: v}
		}
	case reflect.Struct:
		if s, ok := u.byGo[t]; ok {
			p := reflect.New(t)
			p.Elem().Set(reflect.ValueOf(v))
			return &object{u: u, structType: s, pointer: p.Interface()}
		}
	case reflect.Slice:
		if t.Elem().Kind() != reflect.Uint8 {
			return types.NewDynamicList(u, v)
		}
	}
	return u.base.NativeToValue(v)
}

// An object is a struct as a CEL value of its own.
type object struct {
	u *universe
	*structType
	pointer any
}

// Get implements traits.Indexer, for expressions whose type is only known when
// they are evaluated.
func (o *object) Get(index ref.Val) ref.Val {
	f := o.find(index)
	if f == nil {
		return types.NewErr("no such field '%v'", index)
	}
	v, err := f.GetFrom(o.pointer)
	if err != nil {
		return types.WrapErr(err)
	}
	return o.u.NativeToValue(v)
}

// IsSet implements traits.FieldTester.
func (o *object) IsSet(name ref.Val) ref.Val {
	f := o.find(name)
	if f == nil {
		return types.NewErr("no such field '%v'", name)
	}
	return types.Bool(f.IsSet(o.pointer))
}

func (o *object) find(name ref.Val) *field {
	s, _ := name.(types.String)
	return o.fields[string(s)]
}

// ConvertToNative implements ref.Val.
func (o *object) ConvertToNative(t reflect.Type) (any, error) {
	if reflect.TypeOf(o.pointer).AssignableTo(t) {
		return o.pointer, nil
	}
	return nil, fmt.Errorf("%s cannot be converted to %s", o.TypeName(), t)
}

// ConvertToType implements ref.Val.
func (o *object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case o.structType.Type:
		return o
	case types.TypeType:
		return o.structType.Type
	}
	return types.NewErr("%s cannot be converted to %s", o.TypeName(), t.TypeName())
}

// Equal implements ref.Val: an object is equal to itself only.
func (o *object) Equal(other ref.Val) ref.Val {
	p, ok := other.(*object)
	return types.Bool(ok && p.pointer == o.pointer)
}

// Type implements ref.Val.
func (o *object) Type() ref.Type { return o.structType.Type }

// Value implements ref.Val.
func (o *object) Value() any { return o.pointer }
