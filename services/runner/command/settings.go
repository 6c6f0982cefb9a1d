package command

import "errors"

// Settings of the section `command`.
type Settings struct {
	Path string   `key:"path" env:"PULLAB_COMMAND_PATH" help:"Program that runs a plan: a path, or a name in PATH. Needed when runner.executors has command."`
	Args []string `key:"args" env:"PULLAB_COMMAND_ARGS" help:"Its arguments, in front of nothing: the plan comes on standard input."`
}

var errNoProgram = errors.New("command.path is empty: name the program that runs a plan")
