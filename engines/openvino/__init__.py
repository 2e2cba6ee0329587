"""Graphs on OpenVINO: any x86 processor, in bf16 where it multiplies in bf16."""
