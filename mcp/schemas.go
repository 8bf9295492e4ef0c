package mcp

import "bottle/bottle"

// What the tools take. Descriptions are for the model: it is told what to write, in words
// that an error can repeat.

func matchSchema() node {
	value := bounded(text("what to compare with"), bottle.MaxValue)
	return object(node{
		"path": described(object(node{
			"type":  oneOf("Exact, PathPrefix (by whole segments) or RegularExpression (RE2, over the whole path)", "Exact", "PathPrefix", "RegularExpression"),
			"value": bounded(text("begins with /, for instance /v1/"), bottle.MaxValue),
		}, "type", "value"), `for instance {"type": "PathPrefix", "value": "/v1/"}`),
		"method": bounded(text("an HTTP method, for instance GET; absent: every method"), 32),
		"headers": list(object(node{
			"type":  oneOf("Exact (the default) or RegularExpression", "Exact", "RegularExpression"),
			"name":  bounded(text("a header's name"), 128),
			"value": value,
		}, "name", "value"), bottle.MaxHeaders, "headers that must have these values"),
		"queryParams": list(object(node{
			"type":  oneOf("Exact (the default) or RegularExpression", "Exact", "RegularExpression"),
			"name":  bounded(text("a parameter's name, as it is meant, not escaped"), 128),
			"value": value,
		}, "name", "value"), bottle.MaxQueryParams, "parameters of the query that must be there once, with these values"),
	})
}

func entrySchema() node {
	return object(node{
		"host":    bounded(text("a bare host name, for instance api.example.com, or *.example.com for exactly one label below it; no scheme, port, path or IP address"), 1024),
		"ports":   list(integer(1, 65535, "a port number"), 64, "a list of port numbers, for instance [8443]; absent: 443 and 80"),
		"matches": list(matchSchema(), bottle.MaxMatches, "a list of {path, method, headers, queryParams}, of which one must fit a request; absent: the whole host, which an operator grants less readily"),
	}, "host")
}

const waitLimit = 600 // seconds

func submitSchema() node {
	return defined(object(node{
		"kind":         oneOf("access, the only kind; it may be left out", bottle.KindAccess),
		"add":          list(ref("entry", ""), bottle.MaxEntries, "a list of {host, ports, matches} to allow; ask for the least that you need"),
		"remove":       list(ref("entry", ""), bottle.MaxEntries, "a list of {host, ports, matches} to allow no longer"),
		"reason":       bounded(text("a sentence for the operator: what you need it for"), bottle.MaxReason),
		"ttl_seconds":  integer(1, int(bottle.MaxTTL.Seconds()), "for how many seconds you need it; absent: the operator's default"),
		"credential":   bounded(text("the name of a credential that the operator defined for these hosts, as list_routes shows it; absent: none. Never a secret"), 40),
		"wait_seconds": integer(0, waitLimit, "how many seconds to wait for the decision before the answer says pending; absent: 0"),
	}, "reason"), node{"entry": entrySchema()})
}

func idSchema() node {
	return bounded(text("a request's id, as request_allowlist_change returned it, or its short id, for instance r7"), 64)
}
