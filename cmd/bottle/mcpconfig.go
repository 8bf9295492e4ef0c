package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"bottle/bottle/prompt"
)

func (a *app) mcpConfigCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "mcp-config", Short: "print the MCP configuration for an agent outside of the sandbox",
		Long: `print the MCP configuration for an agent on this machine, outside of the bottle's sandbox, as
Claude Code and others read it:

  bottle mcp-config --bottle NAME > .mcp.json

or pass the file to claude --mcp-config. The paths are this machine's, so there is none for a
bottle on docker, whose socket is in its containers. In the sandbox, on either
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
			meta, err := dir.LoadMetadata()
			if err != nil {
				return err
			}
			if meta.Backend == backendDocker {
				return fmt.Errorf("bottle %s runs on docker, and its MCP socket is nowhere on this machine; in its containers /etc/bottle/mcp.json is the configuration", name)
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
