// Package tmpdeps holds dependencies.
package tmpdeps

import _ "github.com/miekg/dns"
