package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// readTable reads a table of cases. A case begins with `== NAME`, then lines `image:`, `host NAME: ANSWER`, `env NAME: VALUE`,
// `user:` and `note:`, then files: `-- PATH` and the lines of it. `@digest@` stands for the digest of the image's manifest.
func readTable(path string, image Image) []Case {
	text, err := os.ReadFile(path)
	check(err)
	var cases []Case
	var file string
	for number, line := range strings.Split(strings.ReplaceAll(string(text), "@digest@", image.Digest), "\n") {
		if name, ok := strings.CutPrefix(line, "== "); ok {
			cases = append(cases, Case{Name: name, Files: map[string]string{}, Hosts: map[string]string{}})
			file = ""
			continue
		}
		if len(cases) == 0 {
			continue // what stands above the first case
		}
		c := &cases[len(cases)-1]
		if name, ok := strings.CutPrefix(line, "-- "); ok {
			file = name
			c.Files[file] = ""
			continue
		}
		if file != "" {
			c.Files[file] += line + "\n"
			continue
		}
		if line == "" {
			continue
		}
		if !c.set(line) {
			check(fmt.Errorf("%s:%d: not understood: %s", path, number+1, line))
		}
	}
	for _, c := range cases {
		for name, text := range c.Files {
			c.Files[name] = strings.TrimRight(text, "\n")
			if c.Files[name] != "" {
				c.Files[name] += "\n"
			}
		}
	}
	return cases
}

func (c *Case) set(line string) bool {
	key, value, ok := strings.Cut(line+" ", ": ")
	value = strings.TrimSpace(value)
	if !ok {
		return false
	}
	if host, ok := strings.CutPrefix(key, "host "); ok {
		c.Hosts[host] = value
		return true
	}
	if name, ok := strings.CutPrefix(key, "env "); ok {
		if c.Env == nil {
			c.Env = map[string]string{}
		}
		c.Env[name] = value
		return true
	}
	switch key {
	case "image":
		c.Image = value
	case "note":
		c.Note = value
	case "user":
		c.User, _ = strconv.Atoi(value)
	default:
		return false
	}
	return true
}
