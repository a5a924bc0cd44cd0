// Asks podman and containerd's library which hosts they ask for an image under many registry configurations, and writes
// what was seen to one file, which the tests of crfs read. See ./make for how it is run, tests/data/README.md for the form.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
)

// Case is one entry of the file that is written.
type Case struct {
	Name   string            `json:"name"`
	Tool   string            `json:"tool"`
	Note   string            `json:"note,omitempty"`
	Files  map[string]string `json:"files"`
	Env    map[string]string `json:"env,omitempty"`
	User   int               `json:"user,omitempty"`
	Image  string            `json:"image"`
	Hosts  map[string]string `json:"hosts"`
	Asked  []Request         `json:"asked"`
	Pinged []string          `json:"pinged,omitempty"`
	Tokens []Request         `json:"tokens,omitempty"`
	Error  *string           `json:"error"`
	Said   string            `json:"said,omitempty"`
}

// Request is what a server was asked. Nothing secret is kept: of credentials only the kind.
type Request struct {
	URL           string   `json:"url"`
	Authorization string   `json:"authorization,omitempty"`
	Header        []string `json:"header,omitempty"`
	Certificate   bool     `json:"certificate,omitempty"`
}

type output struct {
	About string `json:"about"`
	Image Image  `json:"image"`
	Cases []Case `json:"cases"`
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == "ask-containerd" {
		askContainerd(os.Args[2], os.Args[3])
		return
	}
	out := flag.String("o", "", "the file to write")
	cases := flag.String("cases", "", "the directory of the tables of cases")
	newer := flag.String("newer", "", "the root of a Debian 13 with podman 5.4")
	only := flag.String("only", "", "run only cases whose name has this, and print them")
	table := flag.String("table", "", "run only this table (podman or containerd), and print it")
	crfs := flag.String("crfs", "", "run this crfs through the cases that the file has, and print the differences")
	flag.Parse()

	work, err := os.MkdirTemp("", "registry-configurations")
	check(err)
	defer os.RemoveAll(work)
	image := makeImage()
	authority := newAuthority(work)
	net := newNetwork(image, authority)
	runner := &runner{work: work, net: net, authority: authority, newer: *newer}

	if *crfs != "" {
		runner.compare(readCases(*out), *crfs, *only, *table)
		return
	}
	result := output{About: "Made by scripts/measure/registry-configurations; described in tests/data/README.md.", Image: image}
	seen := map[string]bool{}
	for _, name := range []string{"podman", "containerd"} {
		for _, c := range readTable(filepath.Join(*cases, name+".cases"), image) {
			if !strings.Contains(c.Name, *only) || !strings.Contains(name, *table) {
				continue
			}
			if seen[c.Name] {
				check(fmt.Errorf("two cases are called %q", c.Name))
			}
			seen[c.Name] = true
			if name == "containerd" {
				runner.containerd(&c)
			} else {
				runner.podman(&c)
			}
			result.Cases = append(result.Cases, c)
		}
	}
	text := encode(result)
	if *only+*table != "" {
		fmt.Println(text)
		return
	}
	check(os.WriteFile(*out, []byte(text), 0o644))
	tools := map[string]int{}
	for _, c := range result.Cases {
		tools[c.Tool]++
	}
	fmt.Println(len(result.Cases), "cases:", tools)
}

// encode writes one field of a case a line, so that differences of two runs can be read.
func encode(result output) string {
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	check(encoder.Encode(result))
	return text.String()
}

func same(a, b Case) bool {
	return reflect.DeepEqual(a.Asked, b.Asked) && reflect.DeepEqual(a.Error, b.Error) && reflect.DeepEqual(a.Tokens, b.Tokens)
}
