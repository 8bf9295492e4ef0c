//go:build !race

package main_test

// soakRace: see soak_race_test.go.
const soakRace = false
