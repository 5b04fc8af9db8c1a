// Package wireguard is the road of IP packets: WireGuard (the protocol of
// https://www.wireguard.com/protocol/) in userspace, at both ends.
//
// The [Gateway] is the house's end. A peer is a Session; its packets go
//
//	bind → device → plane → TCP   to the kernel (a TUN interface) or to a stack of its own
//	                      → UDP   to flows
//	                      → DNS   to whoever answers
//
// bind carries WireGuard's own packets: by UDP, or by a [tunnel.Pipe] where UDP does not
// get through. device is golang.zx2c4.com/wireguard: it authenticates, and lets no packet
// in whose source address is not its Session's. plane is the filter: it lets nothing in
// but TCP and UDP to a Service or to the cluster's name server, and drops and counts the
// rest. Whatever passes ends as an api.Arrival with the Session as its evidence.
//
// The [Client] is the other end: under a network interface, or with a stack of its own
// for who may not have one.
package wireguard
