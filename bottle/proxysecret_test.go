package bottle_test

import (
	"net/http"
	"net/url"
	"testing"

	"bottle/bottle"
)

func TestProxyAuthorized(t *testing.T) {
	const secret = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	good := bottle.ProxyAuthorization(secret)
	for _, tc := range []struct {
		name   string
		fields []string
		secret string
		want   bool
	}{
		{"none asked", nil, "", true},
		{"none asked, some given", []string{good}, "", true},
		{"right", []string{good}, secret, true},
		{"scheme in another case", []string{"basic" + good[5:]}, secret, true},
		{"none given", nil, secret, false},
		{"empty", []string{""}, secret, false},
		{"of another bottle", []string{bottle.ProxyAuthorization("other")}, secret, false},
		{"its beginning", []string{good[:len(good)-4]}, secret, false},
		{"twice", []string{good, good}, secret, false},
		{"another scheme", []string{"Bearer " + secret}, secret, false},
		{"the bare secret", []string{secret}, secret, false},
	} {
		if got := bottle.ProxyAuthorized(tc.fields, tc.secret); got != tc.want {
			t.Errorf("%s: %t", tc.name, got)
		}
	}
	if bottle.ProxyUserinfo("") != nil || bottle.ProxyAuthorization("") != "" {
		t.Error("something to send without a secret")
	}
	// What a client makes of the URL is what is taken.
	u, err := url.Parse((&url.URL{Scheme: "http", Host: "127.0.0.1:1", User: bottle.ProxyUserinfo(secret)}).String())
	if err != nil {
		t.Fatal(err)
	}
	r := &http.Request{Header: http.Header{}}
	pass, _ := u.User.Password()
	r.SetBasicAuth(u.User.Username(), pass)
	if !bottle.ProxyAuthorized(r.Header["Authorization"], secret) {
		t.Errorf("%s is not taken", u)
	}
}
