//go:build race

package main_test

// raceDetector: the programs under test are built with it if the test is.
const raceDetector = true
