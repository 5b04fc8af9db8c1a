package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Encode writes values as a stream of YAML documents, with the fields in the
// order of their JSON. T is api.Object, json.RawMessage, or anything that is a
// mapping as JSON. What it writes of Objects, [Decode] reads as the same Objects.
func Encode[T any](w io.Writer, docs ...T) (err error) {
	if len(docs) == 0 {
		return nil
	}
	d, err := yaml.NewDumper(w, yaml.WithLineWidth(-1), yaml.WithCompactSeqIndent(false))
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for _, doc := range docs {
		raw, err := json.Marshal(doc)
		if err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		root, bad := parseJSON(raw)
		if bad != nil {
			return fmt.Errorf("manifest: %s", bad.Problem)
		}
		unstyle(root)
		if err := d.Dump(root); err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
	}
	return nil
}

// unstyle leaves it to the writer which text needs quotes, but for what readers of
// YAML 1.1 take for a boolean.
func unstyle(n *yaml.Node) {
	n.Style = 0
	if n.Tag == "!!str" && slices.Contains([]string{"y", "n", "yes", "no", "on", "off"}, strings.ToLower(n.Value)) {
		n.Style = yaml.SingleQuotedStyle
	}
	for _, c := range n.Content {
		unstyle(c)
	}
}
