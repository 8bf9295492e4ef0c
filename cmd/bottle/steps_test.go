package main_test

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"bottle/bottle"
)

// steps are the commands that scripts have besides testscript's own. Those of the agent:
//
//	agent [BOTTLE]               connect over bottle-mcp
//	tool NAME JSON...            call a tool; with !, the result must be an error
//	ask JSON...                  request_allowlist_change; $UUID is the request
//	decision                     wait_for_decision of $UUID
//	call NAME TOOL JSON...       call a tool in the background, and
//	answer NAME                  wait for what it returns
//	get STATUS [METHOD] URL      send a request through the bottle
//	stream URL                   begin an endless response, which
//	cut                          must be cut
//
// And those around the operator, whose commands all run without a terminal but for dialogue:
//
//	code N COMMAND...            run a command, which must exit with N
//	await REGEXP COMMAND...      run it again and again until it prints that
//	oneof COMMAND... -- COMMAND...   run both at once: one must succeed
//	dialogue FILE COMMAND...     run it at a terminal; see dialogue
//	set NAME REGEXP              the first group in the last output becomes $NAME
//	slay WHO [BOTTLE]            kill -9 the keeper, init, or a daemon by its name
//	tmpfs DIR SIZE               mount a small file system there, and
//	fill DIR                     fill it to the last byte, with DIR/fill
//	ascii FILE                   it holds no byte but printable ASCII and newlines
var steps = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"agent":    stepAgent,
	"tool":     stepTool,
	"ask":      stepAsk,
	"decision": stepDecision,
	"call":     stepCall,
	"answer":   stepAnswer,
	"get":      stepGet,
	"stream":   stepStream,
	"cut":      stepCut,
	"code":     stepCode,
	"await":    stepAwait,
	"oneof":    stepOneOf,
	"dialogue": stepDialogue,
	"set":      stepSet,
	"slay":     stepSlay,
	"ascii":    stepASCII,
	"tmpfs":    stepTmpfs,
	"fill":     stepFill,
}

const agentName = "b" // what scripts call their bottle, mostly

func usage(ts *testscript.TestScript, neg bool, ok bool, form string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", form)
	}
}

func stepAgent(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) < 2, "agent [BOTTLE]")
	name := agentName
	if len(args) == 1 {
		name = args[0]
	}
	w := worldOf(ts)
	a, err := newAgent(w.state, name)
	ts.Check(err)
	if old := w.agents[agentName]; old != nil {
		old.close()
	}
	w.agents[agentName] = a
}

func agentOf(ts *testscript.TestScript) *agent {
	a := worldOf(ts).agents[agentName]
	if a == nil {
		ts.Fatalf("there is no agent; the step agent connects one")
	}
	return a
}

// tell prints a tool's result, and ends the script unless it is what it should be.
func tell(ts *testscript.TestScript, r reply, wantError bool) {
	ts.Check(r.err)
	fmt.Fprint(ts.Stdout(), r.text)
	if r.isError != wantError {
		ts.Fatalf("isError %v: %s", r.isError, r.text)
	}
}

func stepTool(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, false, len(args) > 0, "[!] tool NAME JSON...")
	tell(ts, agentOf(ts).call(args[0], strings.Join(args[1:], " ")), neg)
}

func stepAsk(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, false, len(args) > 0, "[!] ask JSON...")
	r := agentOf(ts).call("request_allowlist_change", strings.Join(args, " "))
	tell(ts, r, neg)
	ts.Setenv("UUID", r.id)
}

func stepDecision(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 0, "decision")
	tell(ts, agentOf(ts).call("wait_for_decision", fmt.Sprintf(`{"id":%q,"timeout_seconds":20}`, ts.Getenv("UUID"))), false)
}

func stepCall(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) > 1, "call NAME TOOL JSON...")
	a, done := agentOf(ts), make(chan reply, 1)
	a.calls[args[0]] = done
	go func() { done <- a.call(args[1], strings.Join(args[2:], " ")) }()
}

func stepAnswer(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, false, len(args) == 1, "[!] answer NAME")
	a := agentOf(ts)
	done := a.calls[args[0]]
	if done == nil {
		ts.Fatalf("no call %s is under way", args[0])
	}
	delete(a.calls, args[0])
	tell(ts, <-done, neg)
}

func stepGet(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2 || len(args) == 3, "get STATUS [METHOD] URL")
	method := "GET"
	if len(args) == 3 {
		method = args[1]
	}
	status, body, err := agentOf(ts).get(method, args[len(args)-1])
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), body)
	if strconv.Itoa(status) != args[0] {
		ts.Fatalf("status %d: %s", status, body)
	}
}

func stepStream(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "stream URL")
	ts.Check(agentOf(ts).open(args[0]))
}

func stepCut(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 0, "cut")
	ts.Check(agentOf(ts).cut())
}

// run is a command without a terminal, even where the tests have one.
func run(ts *testscript.TestScript, args []string) int {
	err := ts.Exec("setsid", append([]string{"--wait"}, args...)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	ts.Check(err)
	return 0
}

func stepCode(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) > 1, "code N COMMAND...")
	if got := run(ts, args[1:]); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s\n%s%s", got, args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func stepAwait(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) > 1, "await REGEXP COMMAND...")
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(stepTimeout / 2); ; {
		run(ts, args[1:])
		out := ts.ReadFile("stdout") + ts.ReadFile("stderr")
		if want.MatchString(out) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%q never came; last:\n%s", args[0], out)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func stepOneOf(ts *testscript.TestScript, neg bool, args []string) {
	i := 0
	for i < len(args) && args[i] != "--" {
		i++
	}
	usage(ts, neg, i > 0 && i < len(args)-1, "oneof COMMAND... -- COMMAND...")
	env := environ(ts)
	var out [2][]byte
	var errs [2]error
	var wg sync.WaitGroup
	for n, argv := range [][]string{args[:i], args[i+1:]} {
		wg.Go(func() {
			cmd := program(argv[0], argv[1:]...)
			cmd.Env = env
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			out[n], errs[n] = cmd.CombinedOutput()
		})
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		ts.Fatalf("%v: %s\n%v: %s", errs[0], out[0], errs[1], out[1])
	}
	winner := 0
	if errs[1] == nil {
		winner = 1
	}
	fmt.Fprintf(ts.Stdout(), "%s", out[winner])
	fmt.Fprintf(ts.Stderr(), "%s", out[1-winner])
}

// environ is the script's environment, which testscript keeps to itself.
func environ(ts *testscript.TestScript) []string {
	ts.Check(ts.Exec("env", "-0"))
	return strings.Split(strings.TrimSuffix(ts.ReadFile("stdout"), "\x00"), "\x00")
}

func stepSet(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "set NAME REGEXP")
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("no group of %q is in:\n%s", args[1], ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], m[1])
}

func stepSlay(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1 || len(args) == 2, "slay keeper|init|DAEMON [BOTTLE]")
	name := agentName
	if len(args) == 2 {
		name = args[1]
	}
	dir, err := bottle.NewDir(filepath.Join(worldOf(ts).state, name))
	ts.Check(err)
	m, err := dir.LoadMetadata()
	ts.Check(err)
	id := m.Keeper
	switch args[0] {
	case "keeper":
	case "init":
		id = m.Init
	default:
		var st bottle.DaemonStatus
		ts.Check(bottle.ReadJSON(dir.DaemonStatus(args[0]), 0, &st))
		id, err = bottle.ProcessOf(st.PID)
		ts.Check(err)
	}
	ts.Check(syscall.Kill(id.PID, syscall.SIGKILL))
	for end := time.Now().Add(stepTimeout); id.Alive(); {
		if time.Now().After(end) {
			ts.Fatalf("%s (%d) does not die", args[0], id.PID)
		}
		<-time.After(time.Millisecond)
	}
}

func stepASCII(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "ascii FILE")
	text := ts.ReadFile(args[0])
	for i, c := range []byte(text) {
		if c > 0x7e || c < 0x20 && c != '\n' {
			ts.Fatalf("%s: byte %d is %#02x, near %q", args[0], i, c, text[max(0, i-40):min(len(text), i+10)])
		}
	}
}
