package api

import "strings"

// Nearest returns the name that was probably meant by s, or "" if none is near:
// one that differs in case, '_' and '-' only, or else the one that takes the
// fewest edits, at most one for each three letters. Of equally near ones it is the last
// of the alphabet, which of versions is the newest.
func Nearest(s string, names []string) string {
	s = folded(s)
	best, least := "", 0
	for _, name := range names {
		f := folded(name)
		limit := max(1, len(f)/3)
		if len(s) > len(f)+limit || len(f) > len(s)+limit {
			continue
		}
		if d := Distance(s, f); d <= limit && (best == "" || d < least || d == least && name > best) {
			best, least = name, d
		}
	}
	return best
}

func folded(s string) string {
	return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s))
}

// Distance returns how many insertions, deletions, substitutions and swaps of
// neighbours make b of a: the optimal string alignment distance.
func Distance(a, b string) int {
	// Rows of the table: before[j] is the distance of a[:i-1] and b[:j].
	var older, before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		older, before, row = before, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(before[j]+1, row[j-1]+1, before[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], older[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
