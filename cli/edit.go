package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"cardea/client"
	"cardea/manifest"
)

func (r *run) edit() *cobra.Command {
	var allowLockout bool
	var namespace string
	c := &cobra.Command{
		Use:   "edit KIND NAME | KIND/NAME",
		Short: "Change one resource in an editor",
		Long: "Opens a resource as YAML in $VISUAL or $EDITOR and writes what you save. If the cluster\n" +
			"refuses it, or it was changed meanwhile, your text is kept in a file.",
		Example:           "  cardea edit service nats\n  EDITOR=nano cardea edit user alice\n  cardea edit tcpmapping/default/ssh",
		ValidArgsFunction: completeKinds,
	}
	namespaceFlag(c, &namespace)
	c.Flags().BoolVar(&allowLockout, "allow-lockout", false, "also if you could no longer write policies afterwards")
	c.RunE = func(c *cobra.Command, args []string) error {
		all, err := wantedOf(args)
		if err != nil {
			return err
		}
		if len(all) > 1 {
			return usagef("edit takes one resource, found %d", len(all))
		}
		k := all[0].kind
		if !k.ByHand && !k.Updatable {
			return fmt.Errorf("a %s is kept by the cluster itself and cannot be changed", k.Name)
		}
		places, failure, err := r.find(c.Context(), all, namespace)
		if err = errors.Join(err, failure); err != nil {
			return err
		}
		o := places[0]
		raw, err := o.get(c.Context())
		if err != nil {
			return err
		}
		now, err := head(raw)
		if err != nil {
			return err
		}
		before, err := editable(raw)
		if err != nil {
			return err
		}
		// The directory is the editor's, too, for what it keeps beside the file.
		dir, err := os.MkdirTemp("", "cardea-edit-") // mode 0700
		if err != nil {
			return err
		}
		file := filepath.Join(dir, strings.ToLower(k.Name)+".yaml")
		after, err := r.inEditor(c.Context(), file, before)
		if err != nil {
			os.RemoveAll(dir)
			return err
		}
		kept := func(err error) error {
			return hinted(err, "your text is in "+file+": mend it and cardea apply -f "+file)
		}
		if bytes.Equal(before, after) {
			os.RemoveAll(dir)
			fmt.Fprintf(r.Err, "%s was not changed\n", keyName(now.Key()))
			return nil
		}
		docs, found := manifest.Decode(file, after)
		if err := found.Err(); err != nil {
			return kept(r.unchanged(err))
		}
		if len(docs) != 1 || docs[0].Object == nil || kindOfObject(docs[0].Object).Path("") != k.Path("") {
			return kept(fmt.Errorf("the text must be one %s", k.Name))
		}
		out, err := o.Update(c.Context(), o.namespace, o.name, docs[0].JSON, client.WriteOptions{AllowLockout: allowLockout})
		if err != nil {
			return kept(r.unchanged(located(docs, err)))
		}
		os.RemoveAll(dir)
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
		Type       json.RawMessage `json:"type,omitempty"`
		Immutable  json.RawMessage `json:"immutable,omitempty"`
		Spec       json.RawMessage `json:"spec,omitempty"`
	}
	var b bytes.Buffer
	err = manifest.Encode(&b, document{o["apiVersion"], o["kind"], meta, o["type"], o["immutable"], o["spec"]})
	return b.Bytes(), err
}

// inEditor writes text to a file, lets the person change it and returns what was
// saved.
func (r *run) inEditor(ctx context.Context, file string, text []byte) (after []byte, err error) {
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	editor := cmp.Or(r.Getenv("VISUAL"), r.Getenv("EDITOR"), "vi")
	// Through a shell, because an editor may be set with arguments.
	cmd := exec.CommandContext(ctx, "sh", "-c", editor+` "$1"`, "sh", file)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, hinted(fmt.Errorf("the editor %q failed: %w", strings.TrimSpace(editor), err), "set VISUAL or EDITOR")
	}
	return os.ReadFile(file)
}
