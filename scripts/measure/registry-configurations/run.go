package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

type runner struct {
	work      string
	net       *network
	authority *authority
	newer     string
}

// The root of a case: what podman finds at its usual places is only what the case has, below overlays and file systems of a
// mount namespace that ends with the command.
const inside = `set -e
root=$1 case=$2 trusted=$3 user=$4
shift 4
if [ "$root" != / ]; then
  mount --bind "$root" "$root"
  for d in proc sys dev; do mount --rbind /$d "$root/$d"; done
fi
mount -t tmpfs none /mnt
cp -a "$case" /mnt/case
cp "$trusted" /mnt/trusted.pem
mkdir /mnt/upper /mnt/work
mount -t overlay none -o "lowerdir=$root/etc,upperdir=/mnt/upper,workdir=/mnt/work" "$root/etc"
rm -rf "$root/etc/containers" "$root/etc/docker"
for d in var/cache home srv run tmp; do mount -t tmpfs none "$root/$d"; done
cp -a /mnt/case/. "$root/"
cp /mnt/trusted.pem "$root/srv/trusted.pem"
mkdir -p "$root/etc/containers" "$root/tmp/store"
[ -e "$root/etc/containers/policy.json" ] || echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$root/etc/containers/policy.json"
chmod 1777 "$root/tmp"
if [ "$user" != 0 ]; then
  chown -R "$user:$user" "$root/home" "$root/tmp/store" "$root/srv" "$root/run"
  mkdir -p "$root/run/user/$user"
  chown "$user:$user" "$root/run/user/$user"
fi
if [ "$root" != / ]; then # podman calls pivot_root itself, which a mere chroot forbids
  cd "$root"
  pivot_root . mnt
  cd /
fi
exec chroot --userspec="$user:$user" / /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/home "$@"
`

func (r *runner) lay(c *Case) string {
	root := filepath.Join(r.work, "case")
	check(os.RemoveAll(root))
	check(os.Mkdir(root, 0o755))
	for name, text := range c.Files {
		path := filepath.Join(root, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, []byte(r.authority.fill(text)), 0o644))
	}
	return root
}

func environment(c *Case, trusted string) []string {
	proxy := "http://" + proxyAddress
	result := []string{"HTTPS_PROXY=" + proxy, "HTTP_PROXY=" + proxy, "SSL_CERT_FILE=" + trusted, "PODMAN_IGNORE_CGROUPSV1_WARNING=1"}
	for name, value := range c.Env {
		result = append(result, name+"="+value)
	}
	return result
}

// podman asks both versions. Where they differ, the newer one's answer is kept, and a note says what the older one did.
func (r *runner) podman(c *Case) {
	older, newer := *c, *c
	older.Tool, newer.Tool = "podman-4.3.1", "podman-5.4.2"
	r.pull(&older, "/")
	r.pull(&newer, r.newer)
	*c = older
	if !same(older, newer) {
		*c = newer
		c.Note = strings.TrimSpace(c.Note + " podman 4.3.1 differs: " + summary(older))
	}
}

func summary(c Case) string {
	asked := []string{}
	for _, request := range c.Asked {
		asked = append(asked, strings.TrimSpace(request.URL+" "+request.Authorization))
	}
	outcome := "no error"
	if c.Error != nil {
		outcome = *c.Error
	}
	return fmt.Sprintf("asked [%s], %s", strings.Join(asked, " "), outcome)
}

func (r *runner) pull(c *Case, root string) {
	r.net.begin(c.Hosts)
	arguments := []string{"--mount", "--propagation", "private", "sh", "-c", inside, "sh", root, r.lay(c), r.authority.file, fmt.Sprint(c.User)}
	arguments = append(arguments, environment(c, "/srv/trusted.pem")...)
	if c.User != 0 {
		arguments = append(arguments, fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", c.User))
	}
	arguments = append(arguments, "podman", "--root", "/tmp/store/root", "--runroot", "/tmp/store/run", "--storage-driver", "vfs", "pull")
	if root != "/" {
		arguments = append(arguments, "--retry", "0")
	}
	said, failed := run(exec.Command("unshare", append(arguments, c.Image)...))
	c.Asked, c.Tokens, c.Pinged = r.net.end()
	c.judge(said, failed)
}

func (r *runner) containerd(c *Case) {
	c.Tool = "containerd-2.4.2"
	r.net.begin(c.Hosts)
	command := exec.Command("/proc/self/exe", "ask-containerd", filepath.Join(r.lay(c), "hosts"), c.Image)
	command.Env = environment(c, r.authority.file)
	said, failed := run(command)
	c.Asked, c.Tokens, c.Pinged = r.net.end()
	c.judge(strings.ReplaceAll(said, r.work+"/case/", ""), failed)
}

func run(command *exec.Cmd) (string, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	bounded := exec.CommandContext(ctx, command.Path, command.Args[1:]...)
	bounded.Env = command.Env
	said, err := bounded.CombinedOutput()
	if ctx.Err() != nil {
		check(fmt.Errorf("%v takes too long: %s", command.Args, said))
	}
	return string(said), err != nil
}

var classes = []struct{ class, pattern string }{
	{"blocked", `is blocked in`},
	{"ambiguous", `cannot prompt without a TTY`},
	{"no-search-registries", `did not resolve to an alias and no`},
	{"config", `registries configuration|short-name aliases|short-name mode|no resolve hosts|CA cert|CERT file|key pair|\.crt|\.cert|\.key|reading registries.conf.d|policy.json|not a directory`},
	{"name", `rewriting reference|invalid reference format|invalid reference|must be lowercase|short name|object required|parsing named reference|creating reference`},
	{"policy", `rejected by policy|Running image|signature`},
	{"certificate", `x509|certificate required|bad certificate|remote error: tls`},
	{"unauthorized", `unauthorized|authentication required|authorization|401`},
	{"not-found", `manifest unknown|not found|404`},
	{"plain-http", `server gave HTTP response|malformed HTTP`},
	{"unreachable", `EOF|refused|reset|no such host|Bad Gateway`},
	{"answer", `500|unexpected|invalid character|wrong bytes|unsupported|manifest`},
}

var mirrors = regexp.MustCompile(`(?s)\(Mirrors also failed: \[.*\]\): `)

func (c *Case) judge(said string, failed bool) {
	if !failed {
		return
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	for i, line := range lines {
		if rest, ok := strings.CutPrefix(line, "Error: "); ok {
			lines[0] = rest
			said = strings.Join(lines[i:], "\n")
			break
		}
	}
	if len(lines[0]) <= 160 {
		c.Said = lines[0]
	}
	said = mirrors.ReplaceAllString(said, "")
	class := "other"
	for _, known := range classes {
		if regexp.MustCompile(known.pattern).MatchString(said) {
			class = known.class
			break
		}
	}
	if class == "other" {
		fmt.Fprintf(os.Stderr, "%s: %s: no known class: %s\n", c.Name, c.Tool, said)
	}
	c.Error = &class
}
