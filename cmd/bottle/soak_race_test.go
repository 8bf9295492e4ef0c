//go:build race

package main_test

// soakRace says that this binary runs with the race detector, many times as slow as without.
const soakRace = true
