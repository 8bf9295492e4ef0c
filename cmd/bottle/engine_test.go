package main

import "testing"

func TestNoRegistry(t *testing.T) {
	for msg, want := range map[string]bool{
		`Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 192.0.2.53:53: no such host`: true,
		`Get "https://r.example/v2/": net/http: request canceled while waiting for connection`:                         true,
		`pull access denied for x, repository does not exist or may require 'docker login'`:                            true,
		`manifest for alpine:0 not found: manifest unknown: manifest unknown`:                                          true,
		`node:22: failed to resolve source metadata for docker.io/library/node:22: failed to do request`:               true,
		`no container engine answers at unix:///var/run/docker.sock`:                                                   false,
		`The command '/bin/sh -c apt-get update' returned a non-zero code: 100`:                                        false,
		`bottle-sidecars was not found beside bottle or in PATH; install it there`:                                     false,
	} {
		if got := noRegistry(msg); got != want {
			t.Errorf("%s: %v", msg, got)
		}
	}
}
