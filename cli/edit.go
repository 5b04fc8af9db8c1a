package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/manifest"
)

func (r *run) edit() *cobra.Command {
	var allowLockout bool
	c := &cobra.Command{
		Use:   "edit KIND NAME",
		Short: "Change one resource in an editor",
		Long: "Opens a resource as YAML in $VISUAL or $EDITOR and writes what you save. If the cluster\n" +
			"refuses it, or it was changed meanwhile, your text is kept in a file.",
		Example:           "  cardea edit service nats\n  EDITOR=nano cardea edit user alice",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeKinds,
	}
	c.Flags().BoolVar(&allowLockout, "allow-lockout", false, "also if you could no longer write policies afterwards")
	c.RunE = func(c *cobra.Command, args []string) error {
		k, err := findKind(args[0])
		if err != nil {
			return err
		}
		if !k.ByHand && !k.Updatable {
			return fmt.Errorf("a %s is kept by the cluster itself and cannot be changed", k.Name)
		}
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		var raw json.RawMessage
		if err := call.Do(c.Context(), http.MethodGet, objectPath(k, args[1]), nil, &raw); err != nil {
			return missing(k, err)
		}
		before, err := editable(raw)
		if err != nil {
			return err
		}
		file, after, err := r.inEditor(c, before)
		if err != nil {
			return err
		}
		kept := func(err error) error {
			return hinted(err, "your text is in "+file+": mend it and cardea apply -f "+file)
		}
		if bytes.Equal(before, after) {
			os.Remove(file)
			fmt.Fprintf(r.Err, "%s was not changed\n", slashName(k.Name, args[1]))
			return nil
		}
		docs, found := manifest.Decode(file, after)
		if err := found.Err(); err != nil {
			return kept(r.unchanged(err))
		}
		if len(docs) != 1 || docs[0].Object.Header().Kind != k.Name {
			return kept(fmt.Errorf("the text must be one %s", k.Name))
		}
		path := objectPath(k, args[1])
		if allowLockout {
			path += "?allowLockout=true"
		}
		var out api.WriteResponse
		if err := call.Do(c.Context(), http.MethodPut, path, json.RawMessage(docs[0].JSON), &out); err != nil {
			return kept(r.unchanged(located(docs, err)))
		}
		os.Remove(file)
		r.tellAll(locate(docs, out.Warnings))
		r.printResult(out.Result, false)
		return nil
	}
	return c
}

// editable returns an Object as a person edits it: with its version, so that a
// change by another meanwhile is noticed.
func editable(raw json.RawMessage) ([]byte, error) {
	var versioned struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &versioned); err != nil {
		return nil, err
	}
	docs, err := asWritten([]json.RawMessage{raw})
	if err != nil {
		return nil, err
	}
	var o map[string]json.RawMessage
	var m map[string]any
	if err := errors.Join(json.Unmarshal(docs[0], &o), json.Unmarshal(o["metadata"], &m)); err != nil {
		return nil, err
	}
	m["resourceVersion"] = versioned.Metadata.ResourceVersion
	meta, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	type document struct {
		APIVersion json.RawMessage `json:"apiVersion"`
		Kind       json.RawMessage `json:"kind"`
		Metadata   json.RawMessage `json:"metadata"`
		Spec       json.RawMessage `json:"spec"`
	}
	var b bytes.Buffer
	err = manifest.Encode(&b, document{o["apiVersion"], o["kind"], meta, o["spec"]})
	return b.Bytes(), err
}

// inEditor lets the person change text, and returns the file that holds what was
// saved.
func (r *run) inEditor(c *cobra.Command, text []byte) (file string, after []byte, err error) {
	f, err := os.CreateTemp("", "cardea-edit-*.yaml") // mode 0600
	if err != nil {
		return "", nil, err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", nil, err
	}
	editor := cmp.Or(r.Getenv("VISUAL"), r.Getenv("EDITOR"), "vi")
	// Through a shell, because an editor may be set with arguments.
	cmd := exec.CommandContext(c.Context(), "sh", "-c", editor+` "$1"`, "sh", f.Name())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		os.Remove(f.Name())
		return "", nil, hinted(fmt.Errorf("the editor %q failed: %w", strings.TrimSpace(editor), err), "set VISUAL or EDITOR")
	}
	after, err = os.ReadFile(f.Name())
	return f.Name(), after, err
}
