package rig

import "testing"

// A section is replaced where it is, and what people have written beside it stays.
func TestReplace(t *testing.T) {
	file := replace("# Results\n\nBy hand.\n", "network", "one\n\n")
	file = replace(file+"\nMore by hand.\n", "network", "two\n\n")
	const want = "# Results\n\nBy hand.\n\n<!-- bench/run network writes what follows -->\n\ntwo\n\n<!-- bench/run network has written this -->\n\nMore by hand.\n"
	if file != want {
		t.Errorf("the file is\n%s\nwant\n%s", file, want)
	}
}

// Ratios are of what was measured in the same round.
func TestRatio(t *testing.T) {
	none := []float64{0, 0, 0}
	for _, tt := range []struct {
		v, base, less []float64
		want          string
	}{
		{[]float64{2, 8, 3}, []float64{1, 4, 2}, none, "2.00 (1.50–2.00)"},
		{[]float64{2}, []float64{4}, none, "0.50"},
		{[]float64{0}, []float64{4}, none, "–"},
		{[]float64{3, 5}, []float64{2, 3}, []float64{1, 1}, "2.00 (2.00–2.00)"},
	} {
		if got := ratio(tt.v, tt.base, tt.less); got != tt.want {
			t.Errorf("%v to %v is %s, want %s", tt.v, tt.base, got, tt.want)
		}
	}
}
