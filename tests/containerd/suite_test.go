// containerd's own tests of snapshotters, against `crfs snapshotter serve` as a proxy plugin. scripts/soak-containerd calls it; it needs root, and CRFS,
// the program.
package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestSuite(t *testing.T) {
	crfs := os.Getenv("CRFS")
	if crfs == "" {
		t.Skip("CRFS names no program")
	}
	// By this name the tests leave out what no overlayfs can do: renaming directories of lower layers.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		socket := filepath.Join(root, "s.sock")
		server := exec.Command(crfs, "snapshotter", "serve", "--address", socket, "--root", filepath.Join(root, "snapshotter"),
			"--cache-dir", filepath.Join(root, "cache"))
		server.Stderr = os.Stderr
		if err := server.Start(); err != nil {
			return nil, nil, err
		}
		for until := time.Now().Add(20 * time.Second); ; {
			if _, err := os.Stat(socket); err == nil {
				break
			}
			if time.Now().After(until) {
				return nil, nil, fmt.Errorf("%s does not answer at %s", crfs, socket)
			}
			time.Sleep(10 * time.Millisecond)
		}
		connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		end := func() error {
			connection.Close()
			server.Process.Signal(os.Interrupt)
			return server.Wait()
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "crfs"), end, nil
	})
}
