"""The command line: `fewstep demo`."""

import argparse
import sys

from .config import METHODS


def main(argv=None):
    """Parse and run; returns the exit status. A fault of the user's input is one line on stderr, status 2."""
    parser = argparse.ArgumentParser(prog="fewstep", description="Make a diffusion model good in 1 to 8 steps.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="distil a LoRA from the packaged teacher and show what it does")
    demo.add_argument("--out", default="demo-out", help="folder for the picture, curves, LoRA and metrics (default: %(default)s)")
    demo.add_argument("--teacher", choices=("flow", "epsilon"), default="flow", help="which packaged model (default: %(default)s)")
    demo.add_argument("--method", choices=METHODS, default=METHODS[0], help="how to distil (default: %(default)s)")
    demo.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    demo.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        from .demo.run import COLUMNS
        from .demo.run import demo as run_demo

        result = run_demo(args.out, kind=args.teacher, method=args.method, device=args.device, seed=args.seed)
    except (ValueError, OSError) as error:
        print(f"fewstep {args.command}: {error}", file=sys.stderr)
        return 2
    print(f"\n{'':14}{'RMSE to teacher':>16}{'Frechet to data':>17}")
    for name in COLUMNS:
        row = result["columns"][name]
        print(f"{name:14}{row['rmse']:16.4f}{row['frechet']:17.3f}")
    print(f"{result['seconds']:.0f} s. Written to {args.out}: demo.png, curves.png, lora.safetensors, metrics.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
