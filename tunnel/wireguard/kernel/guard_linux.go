package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// guard has the kernel drop whatever comes in, unless it is taken or comes by the loopback
// interface, and whatever is not for the namespace itself.
func (l *Link) guard(services []netip.Prefix) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(l.inside.file.Fd())))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	drop := nftables.ChainPolicyDrop
	table := c.AddTable(&nftables.Table{Name: "cardea", Family: nftables.TableFamilyINet})
	in := c.AddChain(&nftables.Chain{
		Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &drop,
	})
	c.AddChain(&nftables.Chain{
		Name: "through", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	accept := func(when ...expr.Any) {
		c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: append(when, &expr.Verdict{Kind: expr.VerdictAccept})})
	}
	accept(is(&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: 1}, binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_LOOPBACK))...)
	for _, tests := range taken(services) {
		var when []expr.Any
		for _, t := range tests {
			when = append(when, t.rule()...)
		}
		accept(when...)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

func is(load expr.Any, value []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

// rule is the test in a rule.
func (t test) rule() []expr.Any {
	bytes := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v)[4-t.size:] }
	op := expr.CmpOpEq
	if t.differs {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(t.at), Len: uint32(t.size)},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(t.size), Mask: bytes(t.mask), Xor: make([]byte, t.size)},
		&expr.Cmp{Op: op, Register: 1, Data: bytes(t.value)},
	}
}
