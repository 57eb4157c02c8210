"""Objectives: small pure functions `(student, target, teacher, ...) -> loss, metrics`, one file each."""
