// Package claudetest is a scripted Messages API, for driving the real Claude Code offline in
// tests: the program and its MCP client are real, only what the model says is written down.
//
// The model: a script is a list of steps, each with a text that must occur in what came last in
// the conversation (the prompt, a tool's result, the notice that a background task has ended)
// and with what the model says then. Claude Code talks to its model more often than a script
// would want to know (a title for the session, a turn for each notice), so what fits no step is
// answered with a word and changes nothing. [Environ] and [Prepare] make a home in which Claude
// Code starts without a question and calls nobody but the server.
//
// There is no trust boundary: the server is for tests, on loopback.
package claudetest
