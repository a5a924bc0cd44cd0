package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// compare runs `crfs inspect` through the cases that were written down, and prints where it asks otherwise than the tool did.
func (r *runner) compare(cases []Case, crfs, only, table string) {
	count := map[string]int{}
	for _, theirs := range cases {
		if !strings.Contains(theirs.Name, only) || !strings.HasPrefix(theirs.Tool, table) {
			continue
		}
		ours, said := r.crfs(theirs, crfs)
		verdict := judge(theirs, ours)
		count[verdict]++
		if verdict != "same" {
			fmt.Printf("%s: %s (%s)\n  %s: %s\n  crfs: %s\n  %s\n", verdict, theirs.Name, theirs.Image, theirs.Tool, brief(theirs), brief(ours), said)
		}
	}
	fmt.Println(count)
}

func (r *runner) crfs(theirs Case, crfs string) (Case, string) {
	ours := theirs
	ours.Error, ours.Files = nil, map[string]string{}
	arguments := []string{crfs, "inspect"}
	for name, text := range theirs.Files {
		if strings.HasPrefix(name, "hosts/") {
			name = "srv/" + name
		}
		ours.Files[name] = text
	}
	if strings.HasPrefix(theirs.Tool, "containerd") {
		arguments = append(arguments, "--hosts-dir", "/srv/hosts")
		ours.Files["srv/hosts/.note"] = ""
		ours.Env = map[string]string{"REGISTRY_AUTH_FILE": "/srv/auth.json"}
		ours.Files["srv/auth.json"] = authFile(theirs.Env["CREDENTIALS"])
	}
	r.net.begin(ours.Hosts)
	shell := []string{"--mount", "--propagation", "private", "sh", "-c", inside, "sh", "/", r.lay(&ours), r.authority.file, fmt.Sprint(ours.User)}
	shell = append(shell, environment(&ours, "/srv/trusted.pem")...)
	if ours.User != 0 {
		shell = append(shell, fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", ours.User))
	}
	said, failed := run(exec.Command("unshare", append(append(shell, arguments...), ours.Image)...))
	ours.Asked, ours.Tokens, ours.Pinged = r.net.end()
	if !failed {
		return ours, "no error"
	}
	class := "error"
	ours.Error = &class
	return ours, strings.TrimSpace(said)
}

func authFile(credentials string) string {
	auths := map[string]map[string]string{}
	for line := range strings.Lines(credentials) {
		host, secret, _ := strings.Cut(strings.TrimSpace(line), " ")
		auths[host] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(secret))}
	}
	text, err := json.Marshal(map[string]any{"auths": auths})
	check(err)
	return string(text)
}

// resolving is the part of what was asked that finds the manifest of the name: what is asked by its digest afterwards, and of
// blobs, is the tools' own business.
func resolving(c Case) []string {
	var urls []string
	for _, request := range c.Asked {
		if !strings.Contains(request.URL, "/manifests/") {
			continue
		}
		plain, _, _ := strings.Cut(request.URL, "?")
		if len(urls) > 0 {
			first, _, _ := strings.Cut(urls[0], "?")
			if path.Base(first) != path.Base(plain) {
				continue
			}
		}
		mark := ""
		if request.Authorization != "" && request.Authorization != "empty" {
			mark += " " + request.Authorization
		}
		if request.Certificate {
			mark += " certificate"
		}
		urls = append(urls, request.URL+mark+strings.Join(append([]string{""}, request.Header...), " "))
	}
	return urls
}

func judge(theirs, ours Case) string {
	a, b := resolving(theirs), resolving(ours)
	switch {
	case (theirs.Error == nil) != (ours.Error == nil):
		return "another outcome"
	case slices.Equal(a, b):
		return "same"
	case ours.Error != nil && len(b) < len(a) && slices.Equal(a[:len(b)], b):
		return "refused earlier"
	default:
		return "asked otherwise"
	}
}

func brief(c Case) string {
	class := "no error"
	if c.Error != nil {
		class = *c.Error
	}
	return fmt.Sprintf("%s [%s]", class, strings.Join(resolving(c), ", "))
}

func readCases(file string) []Case {
	text, err := os.ReadFile(filepath.Clean(file))
	check(err)
	var known output
	check(json.Unmarshal(text, &known))
	return known.Cases
}
