package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/server"
)

func (r *run) backup() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write all that the cluster knows to a file, while it serves",
		Long: "Writes every resource, with the Secrets encrypted as they are stored, to FILE. The key that\n" +
			"encrypts them is not in it: keep a copy of keys/ of the data directory elsewhere. The\n" +
			"access log is not in it either.",
		Example: "  cardea backup cardea-2026-01-31.backup",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if _, err := os.Stat(args[0]); err == nil {
				return hinted(fmt.Errorf("%s is there already, and may be the only backup", args[0]), "name another file, or remove it first")
			}
			call, err := r.api(c.Context())
			if err != nil {
				return err
			}
			f, err := os.CreateTemp(filepath.Dir(args[0]), ".backup-*") // mode 0600
			if err != nil {
				return err
			}
			defer func() {
				if err != nil {
					os.Remove(f.Name())
				}
			}()
			w := bufio.NewWriterSize(f, 1<<20)
			err = call.Stream(c.Context(), http.MethodGet, "/api/backup", nil, func(line json.RawMessage) error {
				_, err := w.Write(append(line[:len(line):len(line)], '\n'))
				return err
			})
			if err = errors.Join(err, w.Flush(), f.Sync()); err != nil {
				f.Close()
				return err
			}
			if _, err = f.Seek(0, 0); err != nil {
				return errors.Join(err, f.Close())
			}
			whole, err := server.CheckBackup(c.Context(), f) // as restore will
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			if err = os.Rename(f.Name(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(r.Out, "%s: %s, revision %s\n", args[0], count(whole.Objects, "resource"), whole.Revision)
			fmt.Fprintln(r.Err, "hint: the Secrets in it need keys/ of the data directory: keep a copy of that elsewhere")
			return nil
		},
	}
}

func (r *run) restore() *cobra.Command {
	var cfg server.Config
	c := &cobra.Command{
		Use:   "restore FILE --data-dir DIR",
		Short: "Put a backup back, in place of all that a stopped cluster knows",
		Long: "Replaces every resource by those of the backup and begins a new epoch, so that whoever\n" +
			"follows the cluster reads everything anew. The cluster must not run. The data directory\n" +
			"has to hold the keys/ of the cluster that was backed up: they open its Secrets, and tell\n" +
			"whether a cluster wrote the backup. The access log says that it was restored.",
		Example: "  cp -r saved-keys ./data/keys && cardea restore cardea-2026-01-31.backup --data-dir ./data",
		Args:    cobra.ExactArgs(1),
	}
	c.Flags().StringVar(&cfg.DataDir, "data-dir", "", "directory of the cluster (or CARDEA_DATA_DIR)")
	c.Flags().StringVar(&cfg.Store, "store", "", "postgres://… if the cluster keeps its resources there (or CARDEA_STORE)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if cfg.DataDir == "" {
			return usagef("restore needs --data-dir: it replaces all that is there")
		}
		var err error
		if cfg.DataDir, err = r.dataDir(cfg.DataDir); err != nil {
			return err
		}
		cfg.Log = r.logger()
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		done, err := server.Restore(c.Context(), cfg, f)
		if err != nil {
			return unprefixed(err)
		}
		fmt.Fprintf(r.Out, "restored %s as of revision %s; they are revision %s now\n", count(done.Objects, "resource"), done.Backup, done.Revision)
		fmt.Fprintln(r.Err, "hint: start the cluster with cardea up")
		return nil
	}
	return c
}

func (r *run) rotate() *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate ca|audit|seal",
		Short: "Make a new key of the cluster",
		Long: "Makes a new key: ca (who vouches for the cluster and its Sessions), audit (who signs the\n" +
			"access log) or seal (which encrypts Secrets). What the old one made stays good for a while;\n" +
			"clients learn a new CA by themselves when they renew.",
		Example:   "  cardea rotate ca\n  cardea rotate seal",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"ca", "audit", "seal"},
	}
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, args []string) error {
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		var done api.RotateResponse
		if err := call.Do(c.Context(), http.MethodPost, "/api/rotate", api.RotateRequest{What: args[0]}, &done); err != nil {
			return err
		}
		if out.value == formatJSON {
			return printJSON(r.Out, done)
		}
		fmt.Fprintf(r.Out, "the %s key is now %s\n", done.What, done.KeyID)
		if done.What == "seal" {
			fmt.Fprintln(r.Err, "hint: backups that were made before need the keys/ of that time: keep it with them, and copy keys/ and make a backup now")
		}
		if done.CASHA256 != "" {
			fmt.Fprintf(r.Out, "log in with --ca-sha256 %s from now on\n", done.CASHA256)
		}
		if !done.Overlap.IsZero() {
			fmt.Fprintf(r.Err, "what the old one made is good until %s\n", done.Overlap.UTC().Format(time.RFC3339))
		}
		return nil
	}
	return c
}
