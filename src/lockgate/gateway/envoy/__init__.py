"""The gateway on a real Envoy, on one machine."""

from lockgate.gateway.envoy.gateway import EnvoyGateway
from lockgate.gateway.envoy.values import EnvoyOptions

__all__ = ["EnvoyGateway", "EnvoyOptions"]
