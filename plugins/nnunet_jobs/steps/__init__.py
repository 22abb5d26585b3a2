"""The five steps: one module each, with ``run(params, context) -> result``. Imported only in a job's child process."""
