"""Put on a job's path by tests: SimpleITK dies of files that say so, in every process or in all but the one that reads for the job."""

import gzip
import importlib.abc
import importlib.machinery
import os
import sys


def _obey(module):
    real = module.ReadImage

    def read(name, *arguments, **named):
        with gzip.open(name) as file:
            data = file.read()
        if b"ABORT-ITK" in data or (b"ABORT-JOB" in data and "nnunet_jobs.prediction.reader" not in sys.orig_argv):
            os.abort()
        return real(name, *arguments, **named)

    module.ReadImage = read


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "SimpleITK":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _obey(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
