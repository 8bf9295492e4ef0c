package launch

// mcpConfigInside is where the agent finds its MCP configuration, on either backend.
const mcpConfigInside = "/etc/bottle/mcp.json"

// mcpConfig is that configuration, as Claude Code and others read it. The bridge is named by its path, since a PATH
// is the image's or the agent's to set. All paths are the inside's; what "bottle mcp-config" prints is for an agent on the host.
const mcpConfig = `{
  "mcpServers": {
    "bottle": {
      "type": "stdio",
      "command": "` + bridgeInside + `",
      "args": ["--socket", "` + socketsInside + `/mcp.sock"]
    }
  }
}
`
