// Package loop is the relay engine for Linux: one event loop per processor, each with
// an epoll(7) of its own, that accepts, connects and carries TCP connections by their
// raw descriptors. A relay costs two descriptors and some hundred bytes: it has no
// goroutine, no timer, no buffer, and nothing of it is known to package net.
//
// All sockets of a relay live in one loop, and everything that happens to it happens
// in the goroutine of that loop, one thing after the other. Calls from outside are
// posted to the loop, which is woken for the first of many only.
//
// Small messages go by read(2) and write(2) through one buffer of the loop. A read that
// fills the buffer is bulk: what follows goes by splice(2) through a borrowed pipe. What
// the other side cannot take waits in a buffer or in the pipe, and until it has gone
// nothing more is read in that direction.
//
// Sockets are registered once, edge-triggered, for all events. A read that brings less
// than was asked for has emptied the socket, unless the peer has sent its end or an
// urgent byte, of which the events tell: such a socket is read until the kernel says
// that there is nothing.
//
// Pairs that are not both TCP are carried by package copy.
package loop
