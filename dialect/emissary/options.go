package emissary

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"cardea/api"
)

// options are what the annotations of a mapping say.
type options struct {
	passthrough  bool
	alpn         []string       // in the order of the text
	sources      []netip.Prefix // sorted
	proxy        api.ProxyVersion
	startTLS     api.StartTLS
	verification api.Verification
	connect      time.Duration
	pending      time.Duration
	duration     time.Duration
	halfClose    time.Duration
	rate         int
	perClient    int
	bytes        int64
	upload       int64 // bytes a second
	download     int64
	loadbalance  *api.Loadbalance
	health       *api.UpstreamHealth
}

// What is not set by an annotation.
const (
	connectTimeout = 3 * time.Second // as in the original
	pendingTimeout = 5 * time.Second
)

// What bounds of bytes, and of bytes a second, may be: as in a Service.
const (
	leastBytes = 1 << 10
	mostBytes  = 1 << 50
)

// parseOptions reads the annotations with our prefix, and says what is wrong.
func (c *compiler) parseOptions(annotations map[string]string) (options, []string) {
	o := options{connect: connectTimeout, pending: pendingTimeout}
	var wrong []string
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ours := strings.CutPrefix(key, api.AnnotationPrefix)
		if !ours {
			continue
		}
		if err := o.set(name, strings.TrimSpace(annotations[key])); errors.Is(err, errUnknown) {
			wrong = append(wrong, fmt.Sprintf("the annotation %s is not known%s", short(key), c.meant(name)))
		} else if err != nil {
			wrong = append(wrong, fmt.Sprintf("the annotation %s %s", short(key), err))
		}
	}
	return o, wrong
}

// errUnknown is that there is no such annotation.
var errUnknown = errors.New("is not known")

// meant returns a question which annotation was meant.
func (c *compiler) meant(name string) string {
	question, known := c.unknown[name]
	if !known {
		question = didYouMean(name, []string{
			api.AnnotationTLS, api.AnnotationALPN, api.AnnotationSources, api.AnnotationProxyProtocol, api.AnnotationStartTLS,
			api.AnnotationUpstreamVerification, api.AnnotationConnectTimeout, api.AnnotationPendingTimeout, api.AnnotationMaxDuration,
			api.AnnotationHalfCloseTimeout, api.AnnotationOnRemoval, api.AnnotationConnectionsPerSecond,
			api.AnnotationConnectionsPerClient, api.AnnotationMaxBytes, api.AnnotationUpload, api.AnnotationDownload,
			api.AnnotationLoadbalance, api.AnnotationHealth,
		})
		c.unknown[name] = question
	}
	return question
}

// set takes one annotation. The error completes "the annotation X …".
func (o *options) set(name, value string) (err error) {
	const maxTime = 100 * 360 * 24 * time.Hour
	switch name {
	case api.AnnotationTLS:
		if o.passthrough = strings.EqualFold(value, "passthrough"); !o.passthrough {
			return errors.New("must be passthrough; to have TLS ended, set host and leave it out")
		}
	case api.AnnotationALPN:
		o.alpn, err = protocols(value)
		if err == nil && o.alpn == nil {
			err = errors.New("must name at least one protocol")
		}
	case api.AnnotationSources:
		o.sources, err = networks(value)
	case api.AnnotationProxyProtocol:
		o.proxy, err = one(value, api.ProxyV1, api.ProxyV2)
	case api.AnnotationStartTLS:
		o.startTLS, err = one(value, api.StartTLSPostgres)
	case api.AnnotationUpstreamVerification:
		o.verification, err = one(value, api.VerificationRequire, api.VerificationReport)
	case api.AnnotationConnectTimeout:
		o.connect, err = duration(value, 10*time.Millisecond, time.Hour)
	case api.AnnotationPendingTimeout:
		o.pending, err = duration(value, time.Millisecond, time.Hour)
	case api.AnnotationMaxDuration:
		o.duration, err = duration(value, 100*time.Millisecond, maxTime)
	case api.AnnotationHalfCloseTimeout:
		o.halfClose, err = duration(value, 100*time.Millisecond, maxTime)
	case api.AnnotationOnRemoval:
		_, err = one(value, "cut", "drain")
	case api.AnnotationConnectionsPerSecond:
		o.rate, err = number(value, 1, 1_000_000)
	case api.AnnotationConnectionsPerClient:
		o.perClient, err = number(value, 1, 1_000_000)
	case api.AnnotationMaxBytes:
		o.bytes, err = number[int64](value, leastBytes, mostBytes)
	case api.AnnotationUpload:
		o.upload, err = number[int64](value, leastBytes, mostBytes)
	case api.AnnotationDownload:
		o.download, err = number[int64](value, leastBytes, mostBytes)
	case api.AnnotationLoadbalance:
		o.loadbalance = new(api.Loadbalance)
		if err = readJSON(value, o.loadbalance); err == nil && o.loadbalance.Endpoints != nil {
			err = errors.New("must not have endpoints: service says where connections go")
		}
	case api.AnnotationHealth:
		o.health = new(api.UpstreamHealth)
		err = readJSON(value, o.health)
	default:
		return errUnknown
	}
	return err
}

// one returns which of some values is meant, in any case of letters.
func one[T ~string](value string, allowed ...T) (T, error) {
	var names []string
	for _, a := range allowed {
		if strings.EqualFold(value, string(a)) {
			return a, nil
		}
		names = append(names, strings.ToLower(string(a)))
	}
	return "", fmt.Errorf("must be %s", strings.Join(names, " or "))
}

func number[T int | int64](value string, least, most T) (T, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < int64(least) || n > int64(most) {
		return 0, fmt.Errorf("must be a number from %d to %d", least, most)
	}
	return T(n), nil
}

func duration(value string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < least || d > most {
		return 0, fmt.Errorf("must be a duration such as 3s or 1m30s, from %s to %s", least, most)
	}
	return d, nil
}

// protocols reads names of ALPN (RFC 7301) with commas between them.
func protocols(value string) ([]string, error) {
	var list []string
	for p := range strings.SplitSeq(value, ",") {
		if p = strings.TrimSpace(p); p == "" || slices.Contains(list, p) {
			continue
		}
		if len(p) > 255 {
			return nil, errors.New("must have names of at most 255 bytes")
		}
		list = append(list, p)
	}
	return list, nil
}

// networks reads prefixes, and single addresses, with commas between them.
func networks(value string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for text := range strings.SplitSeq(value, ",") {
		text = strings.TrimSpace(text)
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, err := netip.ParseAddr(text)
			if err != nil || a.Zone() != "" {
				return nil, fmt.Errorf("must be networks such as 10.0.0.0/8,fd00::/8, and %q is none", short(text))
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		list = append(list, p.Masked())
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list), nil
}
