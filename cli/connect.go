package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
)

func (r *run) connect() *cobra.Command {
	var publish []string
	var share, detach, daemon bool
	c := &cobra.Command{
		Use:   "connect -p SERVICE:[HOST:]PORT… [--detach]",
		Short: "Make Services appear at local ports",
		Long: "Listens at each local port (or Unix socket) and carries its connections to the Service.\n" +
			"Only your own programs may use them, unless --share is given.",
		Example: "  cardea connect -p nats:14222                      # until Ctrl-C\n" +
			"  cardea connect -p nats:14222 -p pg.prod:5432 -d   # in the background\n" +
			"  cardea connect -p nats:[::1]:14222\n" +
			"  cardea connect -p nats:/run/user/1000/nats.sock",
		Args: noArgs,
	}
	c.Flags().StringArrayVarP(&publish, "publish", "p", nil, "SERVICE:[HOST:]PORT or SERVICE:/PATH; port 0 is any that is free")
	c.Flags().BoolVarP(&detach, "detach", "d", false, "run in the background; another connect -d adds its ports")
	c.Flags().BoolVar(&share, "share", false, "let others on this machine, or who reach HOST, use the ports with your Session")
	c.Flags().BoolVar(&daemon, "daemon", false, "be the process in the background")
	if err := c.Flags().MarkHidden("daemon"); err != nil {
		panic("cli: " + err.Error())
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		home, err := r.homeDir()
		if err != nil {
			return err
		}
		if daemon {
			return r.background(c.Context(), home)
		}
		if len(publish) == 0 {
			return r.reachable(c)
		}
		ports := make([]client.Port, len(publish))
		for i, p := range publish {
			if ports[i], err = client.ParsePort(p); err != nil {
				return usagef("%v", err)
			}
			ports[i].Share = share
		}
		me, err := r.open(c.Context())
		if err != nil {
			return err
		}
		if !client.KnowsPeers && !share {
			fmt.Fprintln(r.Err, "warning: this system does not tell whose a local connection is: every user of this machine can use a TCP port")
		}
		if detach {
			return r.detach(c.Context(), home, ports)
		}
		return r.foreground(c.Context(), me, ports)
	}
	return c
}

// reachable says that -p is needed, and shows what could be published.
func (r *run) reachable(c *cobra.Command) error {
	needs := usagef("connect needs -p: the private network is not yet available")
	needs.hint = "cardea connect -p SERVICE:PORT"
	call, err := r.api(c.Context())
	if err != nil {
		return needs // there is no Session that could reach anything
	}
	var list api.Reachable
	if err := call.Do(c.Context(), http.MethodGet, "/api/self/services", nil, &list); err != nil {
		return err
	}
	if len(list.Items) == 0 {
		fmt.Fprintln(r.Out, "this Session may reach no Service")
		return needs
	}
	if err := servicesTable(list.Items).print(r.Out); err != nil {
		return err
	}
	return needs
}

// foreground publishes ports until ctx is done.
func (r *run) foreground(ctx context.Context, me *client.Client, ports []client.Port) error {
	me.Log = r.logger()
	all := &client.Ports{Dialer: me, Log: me.Log}
	open, err := all.Publish(ctx, ports...)
	if err != nil {
		return err
	}
	r.printPorts(open)
	all.Wait()
	return nil
}

// detach publishes ports by the process in the background, which it starts if
// there is none.
func (r *run) detach(ctx context.Context, home string, ports []client.Port) error {
	daemon, err := client.Running(ctx, home)
	if errors.Is(err, client.ErrNotRunning) {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		started := client.Detach(home, self, "connect", "--daemon", "--home", home)
		// Another may have been started at the same time: either is good.
		if daemon, err = client.Running(ctx, home); err != nil {
			return errors.Join(started, err)
		}
	} else if err != nil {
		return err
	}
	open, err := daemon.Publish(ctx, ports...)
	if err != nil {
		return err
	}
	r.printPorts(open)
	fmt.Fprintf(r.Err, "refusals and cuts are told in %s\n", client.LogFile(home))
	return nil
}

// background is the process in the background.
func (r *run) background(ctx context.Context, home string) error {
	file, err := client.OpenLog(home)
	if err != nil {
		return err
	}
	defer file.Close()
	log := slog.New(slog.NewTextHandler(file, nil))
	me := &client.Client{Home: home, Log: log}
	defer me.Close()
	d := &client.Daemon{Home: home, Ports: &client.Ports{Dialer: me, Log: log}, Log: log, Now: time.Now}
	return d.Run(ctx, func() { fmt.Fprint(r.Out, client.ReadyLine) })
}

func (r *run) printPorts(ports []client.Port) {
	for _, p := range ports {
		fmt.Fprintln(r.Out, portLine(p))
	}
}

func portLine(p client.Port) string {
	line := fmt.Sprintf("%s is at %s", p.Service, p.Address)
	if p.Share {
		line += ", shared with everyone who can connect"
	}
	return line
}

func (r *run) disconnect() *cobra.Command {
	return &cobra.Command{
		Use:     "disconnect",
		Short:   "Stop what connect runs in the background",
		Long:    "Closes the published ports of this home and cuts their connections. The Session stays.",
		Example: "  cardea disconnect",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			home, err := r.homeDir()
			if err != nil {
				return err
			}
			daemon, err := client.Running(c.Context(), home)
			if errors.Is(err, client.ErrNotRunning) {
				return hinted(err, "cardea connect -p SERVICE:PORT --detach starts it; Ctrl-C ends one in the foreground")
			}
			if err != nil {
				return err
			}
			if err := daemon.Stop(c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(r.Out, "disconnected")
			return nil
		},
	}
}
