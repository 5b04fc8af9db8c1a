package api

import (
	"fmt"
	"strings"
	"time"
)

// A Duration is a length of time as people write it in a document: exactly one
// unit and a whole number of it, {hours: 4}. A month is 30 days.
type Duration struct {
	Milliseconds *int `json:"milliseconds,omitempty"`
	Seconds      *int `json:"seconds,omitempty"`
	Minutes      *int `json:"minutes,omitempty"`
	Hours        *int `json:"hours,omitempty"`
	Days         *int `json:"days,omitempty"`
	Weeks        *int `json:"weeks,omitempty"`
	Months       *int `json:"months,omitempty"`
}

const day = 24 * time.Hour

// maxDuration is the longest Duration.
const maxDuration = 100 * 360 * day

// A unit is one of the fields of a Duration.
type unit struct {
	n    *int
	name string
	is   time.Duration
}

func (d *Duration) units() []unit {
	return []unit{
		{d.Milliseconds, "milliseconds", time.Millisecond}, {d.Seconds, "seconds", time.Second},
		{d.Minutes, "minutes", time.Minute}, {d.Hours, "hours", time.Hour},
		{d.Days, "days", day}, {d.Weeks, "weeks", 7 * day}, {d.Months, "months", 30 * day},
	}
}

// Or returns the Duration, and other if there is none.
func (d *Duration) Or(other time.Duration) time.Duration {
	if d == nil {
		return other
	}
	for _, u := range d.units() {
		if u.n != nil {
			return time.Duration(*u.n) * u.is
		}
	}
	return other
}

// String returns what was written: "4 hours".
func (d *Duration) String() string {
	if d != nil {
		for _, u := range d.units() {
			if u.n != nil {
				return fmt.Sprintf("%d %s", *u.n, u.name)
			}
		}
	}
	return ""
}

// validate reports a Duration that is not from least to most.
func (d *Duration) validate(p *Problems, at string, least, most time.Duration) {
	if d == nil {
		return
	}
	var found []string
	for _, u := range d.units() {
		if u.n == nil {
			continue
		}
		found = append(found, u.name)
		if *u.n < 0 || int64(*u.n) > int64(most/u.is) || time.Duration(*u.n)*u.is < least {
			p.Add(at+"/"+u.name, fmt.Sprintf("must be from %s to %s", words(least), words(most)), fmt.Sprint(*u.n))
		}
	}
	if len(found) != 1 {
		p.Add(at, "must have exactly one of milliseconds, seconds, minutes, hours, days, weeks, months", strings.Join(found, " and "))
	}
}

// words returns a length of time in the largest unit that divides it.
func words(d time.Duration) string {
	for _, u := range []unit{{nil, "days", day}, {nil, "hours", time.Hour}, {nil, "minutes", time.Minute}, {nil, "seconds", time.Second}} {
		if d%u.is == 0 {
			return fmt.Sprintf("%d %s", d/u.is, u.name)
		}
	}
	return fmt.Sprintf("%d milliseconds", d.Milliseconds())
}
