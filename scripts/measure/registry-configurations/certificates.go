package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// authority makes certificates: of the authority that the tools trust by $SSL_CERT_FILE, and of another one.
type authority struct {
	trusted, other *issuer
	file           string // $SSL_CERT_FILE
	clientCert     string
	clientKey      string
	mutex          sync.Mutex
	made           map[string]*tls.Certificate
}

type issuer struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	text        string
}

func newAuthority(work string) *authority {
	a := &authority{
		trusted: newIssuer("trusted"), other: newIssuer("other"),
		file: filepath.Join(work, "trusted.pem"), made: map[string]*tls.Certificate{},
	}
	check(os.WriteFile(a.file, []byte(a.trusted.text), 0o644))
	client := a.other.issue("client")
	key, err := x509.MarshalPKCS8PrivateKey(client.PrivateKey)
	check(err)
	a.clientCert = encodePEM("CERTIFICATE", client.Certificate[0])
	a.clientKey = encodePEM("PRIVATE KEY", key)
	return a
}

// fill puts what was made for this run in the place of its marks.
func (a *authority) fill(text string) string {
	return strings.NewReplacer("@ca@\n", a.other.text, "@client.cert@\n", a.clientCert, "@client.key@\n", a.clientKey).Replace(text)
}

func (a *authority) server(host string, trusted bool) *tls.Certificate {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	by, name := a.other, "other "+host
	if trusted {
		by, name = a.trusted, "trusted "+host
	}
	if a.made[name] == nil {
		a.made[name] = by.issue(host)
	}
	return a.made[name]
}

func encodePEM(kind string, content []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}))
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	return key
}

func template(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(err)
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(48 * time.Hour),
	}
}

func newIssuer(name string) *issuer {
	key := newKey()
	certificate := template(name)
	certificate.IsCA, certificate.BasicConstraintsValid = true, true
	certificate.KeyUsage = x509.KeyUsageCertSign
	made, err := x509.CreateCertificate(rand.Reader, certificate, certificate, &key.PublicKey, key)
	check(err)
	parsed, err := x509.ParseCertificate(made)
	check(err)
	return &issuer{parsed, key, encodePEM("CERTIFICATE", made)}
}

func (i *issuer) issue(host string) *tls.Certificate {
	key := newKey()
	certificate := template(host)
	certificate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if ip := net.ParseIP(host); ip != nil {
		certificate.IPAddresses = []net.IP{ip}
	} else {
		certificate.DNSNames = []string{host}
	}
	made, err := x509.CreateCertificate(rand.Reader, certificate, i.certificate, &key.PublicKey, i.key)
	check(err)
	return &tls.Certificate{Certificate: [][]byte{made}, PrivateKey: key}
}
