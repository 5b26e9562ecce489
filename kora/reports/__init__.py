"""Reports of a run: audit, parameters, summary, pictures; one class per kind of task."""
