package haproxy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"
)

// certificate is a PEM file that HAProxy can load: a key, its certificate and the chain.
type certificate struct {
	pem   []byte // key, certificate and chain alone, without comments and empty lines
	leaf  *x509.Certificate
	chain []*x509.Certificate // behind leaf, in the order of the file
}

// minRSABits is what OpenSSL's security level 2, the default of Debian's, asks for. HAProxy
// refuses a smaller key, and at a reload all that stands beside it.
const minRSABits = 2048

// parseCertificate reads what stands in one PEM file as HAProxy does (configuration guide,
// `crt`): a private key without passphrase and certificates, the first of which is the
// key's. Everything that could make HAProxy refuse the file is an error here, as the same
// refusal at a reload costs all certificates. Dates are the caller's business.
func parseCertificate(text []byte) (*certificate, error) {
	var key crypto.Signer
	var c certificate
	var out bytes.Buffer
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch {
		case block.Type == "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("certificate %d: %w", len(c.chain)+1, err)
			}
			c.chain = append(c.chain, cert)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			if key != nil {
				return nil, errors.New("more than one private key; keep the certificate's")
			}
			if strings.HasPrefix(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "" {
				return nil, errors.New("the private key has a passphrase; store it without one")
			}
			var err error
			if key, err = parseKey(block.Bytes); err != nil {
				return nil, err
			}
		default:
			continue // parameters of curves and the like: OpenSSL finds better ones itself
		}
		block.Headers = nil
		if err := pem.Encode(&out, block); err != nil {
			return nil, err
		}
	}
	if len(c.chain) == 0 {
		return nil, errors.New("no certificate in it; want the certificate, its chain and its private key in one PEM file")
	}
	if key == nil {
		return nil, errors.New("no private key in it; append it to the certificate")
	}
	c.leaf, c.chain = c.chain[0], c.chain[1:]
	c.pem = bytes.TrimSpace(out.Bytes())
	public, ok := c.leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the private key is not that of the first certificate; put the server's certificate before its chain")
	}
	return &c, c.acceptable()
}

func parseKey(der []byte) (crypto.Signer, error) {
	// One of three encodings; the type in the PEM header is not always the true one.
	var parsed any
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		if parsed, err = x509.ParsePKCS1PrivateKey(der); err != nil {
			if parsed, err = x509.ParseECPrivateKey(der); err != nil {
				return nil, errors.New("the private key is none of RSA, ECDSA and Ed25519")
			}
		}
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a private key of type %T cannot sign", parsed)
	}
	return key, nil
}

// acceptable holds c against OpenSSL's security level 2.
func (c *certificate) acceptable() error {
	for i, cert := range append([]*x509.Certificate{c.leaf}, c.chain...) {
		switch key := cert.PublicKey.(type) {
		case *rsa.PublicKey:
			if key.N.BitLen() < minRSABits {
				return fmt.Errorf("certificate %d: RSA key of %d bits, want at least %d", i+1, key.N.BitLen(), minRSABits)
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			return fmt.Errorf("certificate %d: key of an unknown kind; want RSA, ECDSA or Ed25519", i+1)
		}
		// The signature of a root is not looked at.
		root := bytes.Equal(cert.RawSubject, cert.RawIssuer)
		if weak := []x509.SignatureAlgorithm{x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1}; !root && slices.Contains(weak, cert.SignatureAlgorithm) {
			return fmt.Errorf("certificate %d: signed with %s, which clients and HAProxy refuse; have it issued again", i+1, cert.SignatureAlgorithm)
		}
		if i > 0 && !bytes.Equal(c.issued(i-1).RawIssuer, cert.RawSubject) {
			return fmt.Errorf("certificate %d did not issue the one before it; order the chain from the server's certificate up", i+1)
		}
	}
	return nil
}

// issued is certificate i, counted from the leaf.
func (c *certificate) issued(i int) *x509.Certificate {
	if i == 0 {
		return c.leaf
	}
	return c.chain[i-1]
}

// current says why c should not be served at now, nil for no reason.
func (c *certificate) current(now time.Time) error {
	switch {
	case now.After(c.leaf.NotAfter):
		return fmt.Errorf("expired on %s", c.leaf.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(c.leaf.NotBefore):
		return fmt.Errorf("not valid before %s", c.leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// fingerprint is what `show ssl cert` prints.
func (c *certificate) fingerprint() string {
	sum := sha1.Sum(c.leaf.Raw)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// names are the host names that c is for, for people.
func (c *certificate) names() []string {
	if len(c.leaf.DNSNames) > 0 {
		return c.leaf.DNSNames
	}
	return []string{c.leaf.Subject.CommonName}
}

// checkOCSP says why der cannot be stapled to c at now. HAProxy refuses such a response, and
// at a reload the certificate with it.
func (c *certificate) checkOCSP(der []byte, now time.Time) (until time.Time, err error) {
	if len(c.chain) == 0 {
		return until, errors.New("the chain lacks the issuer, without which it cannot be judged")
	}
	r, err := ocsp.ParseResponseForCert(der, c.leaf, c.chain[0])
	switch {
	case err != nil:
		return until, err
	case r.Status == ocsp.Unknown:
		return until, errors.New("its authority does not know the certificate")
	case now.Before(r.ThisUpdate):
		return until, errors.New("it is not valid yet")
	case !r.NextUpdate.IsZero() && !now.Before(r.NextUpdate):
		return until, fmt.Errorf("it was valid until %s; fetch a newer one", r.NextUpdate.UTC().Format(time.RFC3339))
	}
	return r.NextUpdate, nil
}

// selfSignedLife is how long a certificate made by us is valid. It is made again when less
// than a third of it is left.
const selfSignedLife = 365 * 24 * time.Hour

// selfSigned makes a certificate that nobody vouches for, as a PEM file.
func selfSigned(names []string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "bridged self-signed"}, DNSNames: names,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfSignedLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	_, err = tls.X509KeyPair(out, out)
	return out, err
}
