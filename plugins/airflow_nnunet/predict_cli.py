"""``airflow nnunet predict``: post a case to the prediction API of a running Airflow, wait for it, save its segmentation.

Exit codes: 0 done (or, without --wait, taken); 1 the prediction failed or was cancelled; 2 refused; 3 not now: no answer, no place, or
not in time. Passwords and tokens come from the environment, never from the command line, which every user of a machine can see.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

from airflow_nnunet.rest_client import RestError
from airflow_nnunet.serving.client import PredictionsClient, Refused

TOKEN, USERNAME, PASSWORD, URL = "NNUNET_API_TOKEN", "NNUNET_API_USERNAME", "NNUNET_API_PASSWORD", "NNUNET_API_URL"
DONE, FAILED, REFUSED, NOT_NOW = 0, 1, 2, 3


def predict_command(args: argparse.Namespace) -> None:
    """The command: the id on stdout (or JSON), what goes wrong on stderr."""
    raise SystemExit(_run(args))


def _run(args: argparse.Namespace) -> int:
    missing = [path for path in args.images if not Path(path).is_file()]
    if missing:
        return _say(f"{missing[0]}: no such file", REFUSED)
    if args.output and not Path(args.output).absolute().parent.is_dir():
        return _say(f"--output {args.output}: its folder is not there", REFUSED)
    url = args.url or os.environ.get(URL) or _configured_url()
    token, username = os.environ.get(TOKEN), os.environ.get(USERNAME, "")
    if not token and not username:
        return _say(f"set {TOKEN}, or {USERNAME} and {PASSWORD}, in the environment", REFUSED)
    client = PredictionsClient(url, username=username, password=os.environ.get(PASSWORD, ""), token=token)
    try:
        return _predict(client, args)
    except Refused as error:
        later = f" (Retry-After: {error.retry_after_s} s)" if error.retry_after_s else ""
        return _say(f"{error.status}: {error}{later}", NOT_NOW if error.passing else REFUSED)
    except RestError as error:
        return _say(str(error), REFUSED)
    except httpx.TransportError as error:
        return _say(f"{url}: no answer ({type(error).__name__}); is the API server up? --url or {URL} says where it is", NOT_NOW)
    except TimeoutError as error:
        return _say(str(error), NOT_NOW)
    finally:
        client.close()


def _predict(client: PredictionsClient, args: argparse.Namespace) -> int:
    prediction = client.predict([Path(path) for path in args.images], dataset=args.dataset, model=args.model, key=args.key)
    if not args.json:
        print(prediction, flush=True)
    if not (args.wait or args.output):
        if args.json:
            _print_json(client.status(prediction))
        return DONE
    found = client.wait(prediction, timeout_s=args.timeout)
    if found["status"] == "succeeded" and args.output:
        client.save_result(prediction, Path(args.output))
    if args.json:
        _print_json(found)
    if found["status"] != "succeeded":
        return _say(f"{found['status']}: {found.get('reason', '')}".rstrip(": "), FAILED)
    if not args.json:
        for label, volume in found.get("volumes_ml", {}).items():
            print(f"{label}: {volume:.3f} ml")
    return DONE


def _configured_url() -> str:
    from airflow.configuration import conf

    return str(conf.get("api", "base_url", fallback="") or "http://127.0.0.1:8080")


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=1))


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
