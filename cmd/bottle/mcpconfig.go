package main

import (
	"errors"

	"github.com/spf13/cobra"

	"bottle/bottle/prompt"
)

func (a *app) mcpConfigCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "mcp-config", Short: "print the MCP configuration for an agent outside of the sandbox",
		Long: `print the MCP configuration for an agent on this machine, outside of the bottle's sandbox, as
Claude Code and others read it:

  bottle mcp-config --bottle NAME > .mcp.json

or pass the file to claude --mcp-config. The paths are this machine's. In the sandbox, on either
backend, the same with the sandbox's paths is /etc/bottle/mcp.json.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			name, err := a.oneName()
			if err != nil {
				return err
			}
			dir, err := a.dirOf(name)
			if err != nil {
				return err
			}
			bridge := findBinary("bottle-mcp")
			if bridge == "" {
				return errors.New("bottle-mcp was not found beside bottle or in PATH; install it there")
			}
			return prompt.JSON(a.out, map[string]any{"mcpServers": map[string]any{
				"bottle": map[string]any{"type": "stdio", "command": bridge, "args": []string{"--socket", dir.MCPSocket()}},
			}})
		},
	}
	return a.forBottle(c)
}
