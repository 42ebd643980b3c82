"""Who may do what: tokens, client certificates, TLS, and the record of what was refused and allowed (docs/security.md).

    actions.py    the actions, and the action of every route and every procedure
    caller.py     Caller: who asks
    tokens.py     tokens and their file: make, end, replace, read, write
    register.py   the tokens of a running server; it reads the file again when it changes
    policy.py     Policy: who is it, and may they do this
    throttle.py   how often each address may fail before it is answered shortly
    audit.py      the record, as JSON lines
    tls.py        the server's certificate, and those that it asks of clients; read again when they change
    texts.py      what strangers may read of an error
    options.py    Security: what the command line says; which address needs authentication

`http/door.py` asks the policy for every request, `Service` for every frame.
"""

from .caller import CALLER, NOBODY, Caller, caller_of
from .options import Security
from .policy import Policy
from .texts import public_text

__all__ = ["CALLER", "NOBODY", "Caller", "Policy", "Security", "caller_of", "public_text"]
