"""Instruction data: turns, template, packing."""
