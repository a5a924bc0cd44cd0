package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
)

// The proxy that the tools are told of. The network namespace has no other way out.
const proxyAddress = "127.0.0.1:3128"

// network is every host that there is: a proxy that ends TLS itself, and listeners for loopback hosts, which Go's programs
// ask by no proxy. It answers by the case's table and remembers what was asked.
type network struct {
	image     Image
	authority *authority
	mutex     sync.Mutex
	answers   map[string][]string
	loopback  []net.Listener
	log       []logged
}

type logged struct {
	Request
	path string
}

func newNetwork(image Image, authority *authority) *network {
	n := &network{image: image, authority: authority}
	listener, err := net.Listen("tcp", proxyAddress)
	check(err)
	go n.accept(listener, n.proxy)
	return n
}

func (n *network) accept(listener net.Listener, serve func(net.Conn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}

// begin takes the table of a case, and opens what it has on loopback.
func (n *network) begin(hosts map[string]string) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.answers, n.log = map[string][]string{}, nil
	for host, answer := range hosts {
		n.answers[host] = strings.Fields(answer)
		name, port := splitHost(host)
		if ip := net.ParseIP(name); name != "localhost" && !(ip != nil && ip.IsLoopback()) || slices.Contains(n.answers[host], "refused") {
			continue
		}
		ports := []string{port}
		if port == "" {
			ports = []string{"80", "443"}
			if slices.Contains(n.answers[host], "http") {
				ports = []string{"80"}
			}
		}
		for _, port := range ports {
			address := net.JoinHostPort(name, port)
			if name == "localhost" {
				address = "127.0.0.1:" + port
			}
			listener, err := net.Listen("tcp", address)
			check(err)
			n.loopback = append(n.loopback, listener)
			go n.accept(listener, func(conn net.Conn) { n.connection(conn, host, name, port == "80") })
		}
	}
}

// end gives back what was asked, in order and without repeats.
func (n *network) end() (asked, tokens []Request, pinged []string) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	for _, listener := range n.loopback {
		listener.Close()
	}
	n.loopback = nil
	asked = []Request{}
	for _, entry := range n.log {
		switch {
		case entry.path == "/v2/" || entry.path == "/v1/_ping":
			if !slices.Contains(pinged, entry.URL) {
				pinged = append(pinged, entry.URL)
			}
		case entry.path == "/token":
			tokens = add(tokens, entry.Request)
		default:
			asked = add(asked, entry.Request)
		}
	}
	return asked, tokens, pinged
}

func add(all []Request, one Request) []Request {
	for i := range all {
		if all[i].URL == one.URL {
			if one.Authorization != "" {
				all[i].Authorization = one.Authorization
			}
			all[i].Certificate = all[i].Certificate || one.Certificate
			return all
		}
	}
	return append(all, one)
}

func splitHost(host string) (string, string) {
	if name, port, err := net.SplitHostPort(host); err == nil {
		return name, port
	}
	return strings.Trim(host, "[]"), ""
}

func (n *network) answer(host string) []string {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if answer := n.answers[host]; answer != nil {
		return answer
	}
	return []string{"404"}
}

func (n *network) proxy(conn net.Conn) {
	reader := bufio.NewReader(conn)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if request.Method != http.MethodConnect {
			answer := n.answer(request.Host)
			if slices.Contains(answer, "refused") || !n.respond(conn, request, "http", answer, false) {
				return
			}
			continue
		}
		name, port := splitHost(request.Host)
		host := request.Host
		if port == "443" {
			host = strings.TrimSuffix(host, ":443")
			if n.answers[request.Host] != nil {
				host = request.Host
			}
		}
		answer := n.answer(host)
		if slices.Contains(answer, "refused") || slices.Contains(answer, "http") && port == "443" {
			return
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 Connected\r\n\r\n"); err != nil {
			return
		}
		n.connection(conn, host, name, false)
		return
	}
}

// connection speaks TLS, or plain HTTP where the table says so, and as a server does with who speaks the other one.
func (n *network) connection(conn net.Conn, host, name string, plain bool) {
	answer := n.answer(host)
	reader := bufio.NewReader(conn)
	first, err := reader.Peek(1)
	if err != nil {
		return
	}
	plain = plain || slices.Contains(answer, "http")
	if isTLS := first[0] == 0x16; isTLS == plain {
		io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return
	}
	if plain {
		n.serve(conn, reader, "http", answer, false)
		return
	}
	config := &tls.Config{
		ClientAuth: tls.RequestClientCert,
		NextProtos: []string{"http/1.1"},
		Certificates: []tls.Certificate{
			*n.authority.server(name, !slices.Contains(answer, "untrusted")),
		},
	}
	if slices.Contains(answer, "client") {
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.ClientCAs = x509.NewCertPool()
		config.ClientCAs.AddCert(n.authority.other.certificate)
	}
	secure := tls.Server(peeked{conn, reader}, config)
	if secure.Handshake() != nil {
		return
	}
	n.serve(secure, bufio.NewReader(secure), "https", answer, len(secure.ConnectionState().PeerCertificates) > 0)
}

type peeked struct {
	net.Conn
	reader *bufio.Reader
}

func (p peeked) Read(buffer []byte) (int, error) { return p.reader.Read(buffer) }

func (n *network) serve(conn net.Conn, reader *bufio.Reader, scheme string, answer []string, certificate bool) {
	for {
		request, err := http.ReadRequest(reader)
		if err != nil || !n.respond(conn, request, scheme, answer, certificate) {
			return
		}
	}
}

// respond writes one answer; false: the connection is to be closed.
func (n *network) respond(conn net.Conn, request *http.Request, scheme string, answer []string, certificate bool) bool {
	n.remember(request, scheme, certificate)
	status, header, body := n.choose(request, scheme, answer)
	response := &http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: header, Request: request,
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body)),
	}
	return response.Write(conn) == nil
}

func (n *network) remember(request *http.Request, scheme string, certificate bool) {
	entry := logged{path: request.URL.Path}
	entry.URL = scheme + "://" + request.Host + request.URL.RequestURI()
	if entry.path == "/token" {
		entry.URL = scheme + "://" + request.Host + entry.path
	}
	kind, _, _ := strings.Cut(request.Header.Get("Authorization"), " ")
	entry.Authorization = strings.ToLower(kind)
	if user, secret, ok := request.BasicAuth(); ok && user+secret == "" {
		entry.Authorization = "empty"
	}
	entry.Certificate = certificate
	for name, values := range request.Header {
		if strings.HasPrefix(strings.ToLower(name), "x-") {
			for _, value := range values {
				entry.Header = append(entry.Header, name+": "+value)
			}
		}
	}
	sort.Strings(entry.Header)
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.log = append(n.log, entry)
}

func (n *network) choose(request *http.Request, scheme string, answer []string) (int, http.Header, string) {
	header := http.Header{"Content-Type": {"application/json"}}
	has := func(word string) bool { return slices.Contains(answer, word) }
	credentials := request.Header.Get("Authorization")
	switch {
	case request.URL.Path == "/token":
		return 200, header, `{"token":"dummy","access_token":"dummy"}`
	case has("500"):
		return 500, header, "{}"
	case has("garbage"):
		header.Set("Content-Type", "text/html")
		return 200, header, "<html>not a registry</html>"
	case has("401"), has("basic") && !strings.HasPrefix(credentials, "Basic "):
		header.Set("WWW-Authenticate", `Basic realm="registry"`)
		return 401, header, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`
	case has("token") && !strings.HasPrefix(credentials, "Bearer "):
		header.Set("WWW-Authenticate", `Bearer realm="`+scheme+"://"+request.Host+`/token",service="registry"`)
		return 401, header, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`
	case request.URL.Path == "/v2/":
		return 200, header, "{}"
	}
	return n.content(request.URL.Path, has, header)
}

func (n *network) content(path string, has func(string) bool, header http.Header) (int, http.Header, string) {
	missing := `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`
	if has("404") {
		return 404, header, missing
	}
	if _, name, ok := strings.Cut(path, "/manifests/"); ok && !has("no-manifests") {
		if strings.HasPrefix(name, "sha256:") && name != n.image.Digest || has("no-tags") && !strings.HasPrefix(name, "sha256:") {
			return 404, header, missing
		}
		header.Set("Content-Type", manifestType)
		header.Set("Docker-Content-Digest", n.image.Digest)
		header.Set("Content-Length", strconv.Itoa(len(n.image.Manifest)))
		return 200, header, n.image.Manifest
	}
	_, digest, _ := strings.Cut(path, "/blobs/")
	for _, blob := range []string{n.image.Config, string(n.image.Layer)} {
		if digest != digestOf([]byte(blob)) || has("no-blobs") {
			continue
		}
		if has("redirect") {
			header.Set("Location", "https://storage.test"+path)
			return 307, header, ""
		}
		header.Set("Content-Type", "application/octet-stream")
		return 200, header, blob
	}
	return 404, header, strings.Replace(missing, "MANIFEST", "BLOB", 1)
}
