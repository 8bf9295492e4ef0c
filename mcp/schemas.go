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
	})
}

func entrySchema() node {
	return object(node{
		"host":    bounded(text("a bare host name, for instance api.example.com, or *.example.com for exactly one label below it; no scheme, port, path or IP address"), 1024),
		"ports":   list(integer(1, 65535, "a port number"), 64, "a list of port numbers, for instance [8443]; absent: 443 and 80"),
		"matches": list(matchSchema(), bottle.MaxMatches, "a list of {path, method, headers}, of which one must fit a request; absent: the whole host, which an operator grants less readily"),
	}, "host")
}

const waitLimit = 600 // seconds

func submitSchema() node {
	return object(node{
		"kind":         oneOf("access, the only kind; it may be left out", bottle.KindAccess),
		"add":          list(entrySchema(), bottle.MaxEntries, "a list of {host, ports, matches} to allow; ask for the least that you need"),
		"remove":       list(entrySchema(), bottle.MaxEntries, "a list of {host, ports, matches} to allow no longer"),
		"reason":       bounded(text("a sentence for the operator: what you need it for"), bottle.MaxReason),
		"ttl_seconds":  integer(1, int(bottle.MaxTTL.Seconds()), "for how many seconds you need it; absent: the operator's default"),
		"credential":   bounded(text("the name of a credential that the operator defined for these hosts, as list_routes shows it; absent: none. Never a secret"), 40),
		"wait_seconds": integer(0, waitLimit, "how many seconds to wait for the decision before the answer says pending; absent: 0"),
	}, "reason")
}

func idSchema() node {
	return bounded(text("a request's id, as request_allowlist_change returned it, or its short id, for instance r7"), 64)
}

// What the tools return.

func requestOutput() node {
	change := func(desc string) node {
		return described(object(node{
			"add":         list(entrySchema(), 0, ""),
			"remove":      list(entrySchema(), 0, ""),
			"credential":  text("by name"),
			"ttl_seconds": node{"type": "integer"},
		}), desc)
	}
	return object(node{
		"id":         text("give it to wait_for_decision, get_request and cancel_request"),
		"short":      text("the id that the operator sees"),
		"status":     oneOf("applied: in force now", "pending", "approved", "applied", "failed", "denied", "cancelled", "expired", "revoked"),
		"next":       text("what to do now, in a sentence"),
		"asked":      change("what was asked, in canonical form"),
		"granted":    change("what was granted; it may differ from what was asked"),
		"duration":   text("of what was granted: once, session, permanent or a time span"),
		"expires_at": instant("when what was granted ends"),
		"edited":     list(node{"type": "string"}, 0, "what the operator changed of the ask"),
		"note":       text("the operator's words to you"),
		"error":      text("why it failed, in the daemon's words"),
		"revision":   described(node{"type": "object", "additionalProperties": node{"type": "string"}}, "file to revision in force"),
		"attempts":   node{"type": "integer", "description": "how often this was asked while it was pending"},
		"joined":     boolean("the same was pending already; this is that request"),
		"created_at": instant(""),
		"updated_at": instant("when the status was entered"),
	}, "id", "status", "next", "asked", "attempts", "created_at")
}

func requestsOutput() node {
	return object(node{
		"requests": list(requestOutput(), 0, "newest first"),
		"total":    node{"type": "integer", "description": "how many there are; old ones that are decided may not be listed"},
		"next":     text("what to do now, in a sentence"),
	}, "requests", "total", "next")
}

func routesOutput() node {
	route := object(node{
		"host":       text(""),
		"ports":      list(node{"type": "integer"}, 0, ""),
		"matches":    list(matchSchema(), 0, "absent: every method and path"),
		"tls":        oneOf("", "intercept", "passthrough"),
		"credential": text("the name of the credential that is put into these requests; you never see it"),
		"source":     text("manifest or grant"),
		"grant":      text("the request that opened it"),
		"duration":   text(""),
		"expires_at": instant(""),
	}, "host", "ports", "tls", "source")
	return object(node{
		"revision":  text("of the rules in force"),
		"loaded_at": instant(""),
		"routes":    list(route, 0, ""),
		"total":     node{"type": "integer", "description": "how many routes fit; the list is cut at a few hundred"},
		"next":      text("what to do now, in a sentence"),
	}, "revision", "loaded_at", "routes", "total", "next")
}

func askOutput() node {
	return described(object(node{
		"kind":        text(""),
		"add":         list(entrySchema(), 0, ""),
		"remove":      list(entrySchema(), 0, ""),
		"reason":      text("write your own"),
		"ttl_seconds": node{"type": "integer"},
		"credential":  text(""),
	}), "arguments for request_allowlist_change that would ask for it, with a reason of your own")
}

func checkOutput() node {
	return object(node{
		"url": text(""), "method": text(""),
		"allowed": boolean(""),
		"rule":    text("the route that allows it"),
		"nearest": text("the route that comes nearest, and why it doesn't fit"),
		"reason":  text(""),
		"ask":     askOutput(),
		"next":    text("what to do now, in a sentence"),
	}, "url", "method", "allowed", "reason", "next")
}

func denialsOutput() node {
	denial := object(node{
		"host": text(""), "port": node{"type": "integer"}, "method": text(""), "path": text(""),
		"layer": text("egress or pipelock"), "reason": text(""), "nearest": text("the route that comes nearest"),
		"count": node{"type": "integer"}, "first": instant(""), "last": instant(""),
		"ask": askOutput(),
	}, "host", "port", "method", "layer", "reason", "count", "first", "last")
	return object(node{
		"denials": list(denial, 0, "newest first, like ones grouped"),
		"next":    text("what to do now, in a sentence"),
	}, "denials", "next")
}
