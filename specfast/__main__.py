"""``python -m specfast``: the environment report; with arguments, the command line."""

import sys

from specfast import cli, environment


def main() -> int:
    return cli.main() if len(sys.argv) > 1 else cli.until_nobody_reads(overview)


def overview() -> int:
    print(environment.report())
    print("\nCommands (specfast COMMAND --help)")
    print(environment.table(cli.COMMANDS.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
