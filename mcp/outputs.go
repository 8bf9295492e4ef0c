package mcp

// What the tools return. A client has the whole list of tools before its model all the time,
// so that what occurs several times in a schema is defined once, and what the input schemas
// explain is not explained again.

// matchDefs defines a match as it is shown; what it is made of, matchSchema says.
func matchDefs() node {
	return node{"match": object(node{
		"path": node{"type": "object"}, "method": node{"type": "string"}, "headers": list(node{"type": "object"}, 0, ""),
		"queryParams": list(node{"type": "object"}, 0, ""),
	})}
}

// entryDefs defines an entry as well. One that is returned may be asked for as it is.
func entryDefs() node {
	defs := matchDefs()
	defs["entry"] = object(node{
		"host":    node{"type": "string"},
		"ports":   list(node{"type": "integer"}, 0, ""),
		"matches": list(ref("match", ""), 0, ""),
	}, "host")
	return defs
}

// changeDefs defines a change of the allowlist as well.
func changeDefs() node {
	defs := entryDefs()
	defs["change"] = object(node{
		"add":         list(ref("entry", ""), 0, ""),
		"remove":      list(ref("entry", ""), 0, ""),
		"credential":  node{"type": "string"},
		"ttl_seconds": node{"type": "integer"},
	})
	return defs
}

// requestOutput is a request, described.
func requestOutput() node { return defined(requestObject(), changeDefs()) }

// sameOutput is a request for the tools that return one as request_allowlist_change does,
// whose schema describes it.
func sameOutput() node {
	return described(defined(undescribed(requestObject()), changeDefs()), "as request_allowlist_change returns it")
}

// undescribed drops the descriptions of an object's properties.
func undescribed(n node) node {
	props, _ := n["properties"].(node)
	for _, p := range props {
		if p, ok := p.(node); ok {
			delete(p, "description")
		}
	}
	return n
}

func requestObject() node {
	return object(node{
		"id":         text("give it to wait_for_decision, get_request and cancel_request"),
		"short":      text("the id that the operator sees"),
		"status":     oneOf("applied: in force now", "pending", "approved", "applied", "failed", "denied", "cancelled", "expired", "revoked"),
		"next":       text("what to do now, in a sentence"),
		"asked":      ref("change", "what was asked, in canonical form"),
		"granted":    ref("change", "what was granted; it may differ from what was asked"),
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
	return defined(object(node{
		"requests": list(undescribed(requestObject()), 0, "as request_allowlist_change returns them, newest first"),
		"total":    node{"type": "integer", "description": "how many there are; old ones that are decided may not be listed"},
		"next":     text("what to do now, in a sentence"),
	}, "requests", "total", "next"), changeDefs())
}

func routesOutput() node {
	route := object(node{
		"host":       text(""),
		"ports":      list(node{"type": "integer"}, 0, ""),
		"matches":    list(ref("match", ""), 0, "absent: every method and path"),
		"tls":        oneOf("", "intercept", "passthrough"),
		"credential": text("the name of the credential that is put into these requests; you never see it"),
		"source":     text("manifest or grant"),
		"grant":      text("the request that opened it"),
		"duration":   text(""),
		"expires_at": instant(""),
	}, "host", "ports", "tls", "source")
	return defined(object(node{
		"revision":  text("of the rules in force"),
		"loaded_at": instant(""),
		"routes":    list(route, 0, ""),
		"total":     node{"type": "integer", "description": "how many routes fit; the list is cut at a few hundred"},
		"next":      text("what to do now, in a sentence"),
	}, "revision", "loaded_at", "routes", "total", "next"), matchDefs())
}

func askOutput() node {
	return described(object(node{
		"kind":        text(""),
		"add":         list(ref("entry", ""), 0, ""),
		"remove":      list(ref("entry", ""), 0, ""),
		"reason":      text("write your own"),
		"ttl_seconds": node{"type": "integer"},
		"credential":  text(""),
	}), "arguments for request_allowlist_change that would ask for it, with a reason of your own")
}

func checkOutput() node {
	return defined(object(node{
		"url": text(""), "method": text(""),
		"allowed": boolean(""),
		"rule":    text("the route that allows it"),
		"nearest": text("the route that comes nearest, and why it doesn't fit"),
		"reason":  text(""),
		"ask":     askOutput(),
		"next":    text("what to do now, in a sentence"),
	}, "url", "method", "allowed", "reason", "next"), entryDefs())
}

func denialsOutput() node {
	denial := object(node{
		"host": text(""), "port": node{"type": "integer"}, "method": text(""), "path": text(""),
		"layer": text("egress or pipelock"), "reason": text(""), "nearest": text("the route that comes nearest"),
		"count": node{"type": "integer"}, "first": instant(""), "last": instant(""),
		"ask": askOutput(),
	}, "host", "port", "method", "layer", "reason", "count", "first", "last")
	return defined(object(node{
		"denials": list(denial, 0, "newest first, like ones grouped"),
		"next":    text("what to do now, in a sentence"),
	}, "denials", "next"), entryDefs())
}
