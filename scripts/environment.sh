#!/bin/sh
# Makes a virtual environment with lockgate in it: environment.sh PYTHON FOLDER [EXTRA…]
# With the extra `dev` lockgate is installed editable; `transformers` and `derive` bring torch.
set -eu

python=$1
folder=$2
shift 2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "lockgate needs Python 3.11 or newer; '$python' is not. Try: make PYTHON=python3.12" >&2
    exit 1
fi

rm -rf "$folder"
if ! "$python" -m venv "$folder" >/dev/null 2>&1; then
    rm -rf "$folder"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Python's venv module is missing: installing python3-venv" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
        "$python" -m venv "$folder"
    else
        echo "Python's venv module is missing. Try: sudo apt-get install python3-venv" >&2
        exit 1
    fi
fi

pip="$folder/bin/python -m pip --disable-pip-version-check"
extras=$(echo "$*" | tr ' ' ',')
case " $* " in *" transformers "* | *" train "* | *" derive "*)
    $pip install --quiet torch==2.13.0 ;;
esac
case " $* " in
*" dev "*) $pip install --quiet --editable ".[$extras]" ;;
*) $pip install --quiet ".${extras:+[$extras]}" ;;
esac
touch "$folder/ready"
