package frame

import "io"

// A Reader reads frames from a stream of bytes. It reads no byte beyond the
// frame that it is asked for, and holds no buffer between frames. An error of
// the stream that passes (a deadline) loses nothing: the same call may be made
// again.
type Reader struct {
	src    io.Reader
	header [HeaderLen]byte
	have   int    // bytes of header that were read
	body   []byte // payload of a frame other than DATA
	got    int    // bytes of body that were read
	left   int    // bytes of a DATA payload that were not read
	wrong  error  // what the peer did wrong; nothing is read after it
}

// NewReader returns a Reader of src.
func NewReader(src io.Reader) *Reader { return &Reader{src: src} }

// Next reads a frame, of DATA the header only: the payload is read with
// [Reader.Data] or left out by another Next. An error that wraps [ErrProtocol]
// is the peer's. At the end of the stream it returns io.EOF between frames and
// io.ErrUnexpectedEOF within one.
func (r *Reader) Next() (Frame, error) {
	if r.wrong != nil {
		return Frame{}, r.wrong
	}
	if err := r.discard(); err != nil {
		return Frame{}, err
	}
	if err := r.fill(r.header[:], &r.have); err != nil {
		return Frame{}, err
	}
	t, length, err := parseHeader(r.header)
	if err != nil {
		r.wrong = err
		return Frame{}, err
	}
	if t == TypeData {
		r.have, r.left = 0, length
		return Frame{Type: t}, nil
	}
	if r.body == nil {
		r.body = make([]byte, length)
	}
	if err := r.fill(r.body, &r.got); err != nil {
		return Frame{}, unexpected(err)
	}
	f, err := parse(t, r.body)
	r.have, r.body, r.got, r.wrong = 0, nil, 0, err
	return f, err
}

// Left returns how many bytes of the payload of the last DATA are still to be
// read.
func (r *Reader) Left() int { return r.left }

// Data reads from the payload of the last DATA, of which [Reader.Left] must be
// left.
func (r *Reader) Data(p []byte) (int, error) {
	n, err := r.src.Read(p[:min(len(p), r.left)])
	r.left -= n
	if n > 0 {
		return n, nil // the error comes again
	}
	return 0, unexpected(err)
}

// discard reads what is left of a DATA payload.
func (r *Reader) discard() error {
	if r.left == 0 {
		return nil
	}
	b := make([]byte, min(r.left, 4<<10))
	for r.left > 0 {
		if _, err := r.Data(b); err != nil {
			return err
		}
	}
	return nil
}

// fill reads into b from *have on until it is full.
func (r *Reader) fill(b []byte, have *int) error {
	for *have < len(b) {
		n, err := r.src.Read(b[*have:])
		*have += n
		if *have == len(b) {
			return nil
		}
		if err != nil && *have > 0 {
			return unexpected(err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
