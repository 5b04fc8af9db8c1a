package manifest

import "cardea/api"

// didYouMean returns the hint for a name that does not exist, or "".
func didYouMean(s string, names []string) string {
	if name := api.Nearest(s, names); name != "" {
		return "did you mean " + name + "?"
	}
	return ""
}
