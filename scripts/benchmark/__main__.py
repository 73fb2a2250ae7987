"""Runs the command line."""

from benchmark.cli import main

main()
