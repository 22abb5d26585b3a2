"""``airflow nnunet predict`` posts a case to the prediction API of a running Airflow, and may wait for the
segmentation.

The exit codes are those of :class:`~nnunet_jobs.contract.exit_codes.Exit`. Without --wait, done means that the request
was accepted; not now means no answer, a full queue, or a timeout. Passwords and tokens are read from the environment
and not from the command line, which every user of a machine can see.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

from airflow_nnunet.cli.command import command
from airflow_nnunet.prediction_api.client import PredictionsClient, RequestProblem
from airflow_nnunet.prediction_api.rest_client import RestError
from nnunet_jobs.contract.exit_codes import Exit

TOKEN, USERNAME, PASSWORD, URL = "NNUNET_API_TOKEN", "NNUNET_API_USERNAME", "NNUNET_API_PASSWORD", "NNUNET_API_URL"


@command
def predict_command(args: argparse.Namespace) -> int:
    """Post the case, and print the id or JSON on stdout and errors on stderr."""
    missing = [path for path in args.images if not Path(path).is_file()]
    if missing:
        return _say(f"{missing[0]}: no such file", Exit.REFUSED)
    if args.output and not Path(args.output).absolute().parent.is_dir():
        return _say(f"--output {args.output}: its folder does not exist", Exit.REFUSED)
    url = args.url or os.environ.get(URL) or _configured_url()
    token, username = os.environ.get(TOKEN), os.environ.get(USERNAME, "")
    if not token and not username:
        return _say(f"set {TOKEN}, or {USERNAME} and {PASSWORD}, in the environment", Exit.REFUSED)
    try:
        client = PredictionsClient(url, username=username, password=os.environ.get(PASSWORD, ""), token=token)
    except httpx.InvalidURL as error:
        return _say(f"--url={url!r}: not an address ({error}); use one such as http://127.0.0.1:8080", Exit.REFUSED)
    try:
        return _predict(client, args)
    except RequestProblem as error:
        later = f" (Retry-After: {error.retry_after_s} s)" if error.retry_after_s else ""
        return _say(f"{error.status}: {error}{later}", Exit.NOT_NOW if error.passing else Exit.REFUSED)
    except RestError as error:
        return _say(str(error), Exit.REFUSED)
    except httpx.TransportError as error:
        return _say(f"{url}: no answer ({type(error).__name__}); is the API server up? Set its address with --url or {URL}", Exit.NOT_NOW)
    except TimeoutError as error:
        return _say(str(error), Exit.NOT_NOW)
    finally:
        client.close()


def _predict(client: PredictionsClient, args: argparse.Namespace) -> int:
    prediction = client.predict([Path(path) for path in args.images], dataset=args.dataset, model=args.model, key=args.key)
    if not args.json:
        print(prediction, flush=True)
    if not (args.wait or args.output):
        if args.json:
            _print_json(client.status(prediction))
        return Exit.DONE
    found = client.wait(prediction, timeout_s=args.timeout)
    if found["status"] == "succeeded" and args.output:
        client.save_result(prediction, Path(args.output))
    if args.json:
        _print_json(found)
    if found["status"] != "succeeded":
        return _say(f"{found['status']}: {found.get('reason', '')}".rstrip(": "), Exit.FAILED)
    if not args.json:
        for label, volume in found.get("volumes_ml", {}).items():
            print(f"{label}: {volume:.3f} ml")
    return Exit.DONE


def _configured_url() -> str:
    from airflow.configuration import conf

    return str(conf.get("api", "base_url", fallback="") or "http://127.0.0.1:8080")


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=1))


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
