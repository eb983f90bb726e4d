/* Certificates, keys and a revocation list for tests, in PEM form. They were made
 * once with openssl(1) and are valid until 2109: an authority ("ca"), what it
 * signed for "server" and "client" (of version 1, P-256), its list, which has
 * revoked "server", an older list that is empty, one of changes only, and a
 * certificate with a name of many kinds. Nobody trusts them but the tests. */
#ifndef PEM_H
#define PEM_H

static const char pem_ca_cert[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBcDCCARegAwIBAgIUbFhjBDxOrRBlUO9zeH/RTgz438kwCgYIKoZIzj0EAwIw\n"
    "DTELMAkGA1UEAwwCY2EwIBcNMjYxMTIxMTMzODU3WhgPMjEwOTAxMTAxMzM4NTda\n"
    "MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEPTdh0/Mo\n"
    "72VAUTu3CWtuqOmIG9FdU12jRR9RYpxx/fTpwqs2XOXJhKGkJIzc9mTRHUYTY7y6\n"
    "+TMOi8W9FZQNfqNTMFEwHQYDVR0OBBYEFExkNvC66jwvWIvSdjB4p9+L9fgwMB8G\n"
    "A1UdIwQYMBaAFExkNvC66jwvWIvSdjB4p9+L9fgwMA8GA1UdEwEB/wQFMAMBAf8w\n"
    "CgYIKoZIzj0EAwIDRwAwRAIgXaz+520yhD06rCXUCDROWZ7wDUEyfJrzzjtXMEaP\n"
    "cmsCIGxKhZv5OX5cdW1Tp4woZHOa4EaqtkvFa8fRepIT4CrN\n"
    "-----END CERTIFICATE-----\n";

static const char pem_ca_crl[] =
    "-----BEGIN X509 CRL-----\n"
    "MIHPMHcCAQEwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCY2EXDTI2MTEyMTEzMzg1\n"
    "N1oYDzIxMDkwMTEwMTMzODU3WjAnMCUCFGei3x6C8LfxHYqvxzu1t/qWnqO2Fw0y\n"
    "NjExMjExMzM4NTdaoA4wDDAKBgNVHRQEAwIBATAKBggqhkjOPQQDAgNIADBFAiBI\n"
    "bz3lzy/06ob0f0PVXxmcIzF0Hgl856DBR8vo8MLgVgIhAOQUi0eNwMzDbRC+odt3\n"
    "XvHav9zQpNXHs3U3PTNkbdRr\n"
    "-----END X509 CRL-----\n";

static const char pem_server_cert[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBGzCBwQIUZ6LfHoLwt/Ediq/HO7W3+paeo7YwCgYIKoZIzj0EAwIwDTELMAkG\n"
    "A1UEAwwCY2EwIBcNMjYxMTIxMTMzODU3WhgPMjEwOTAxMTAxMzM4NTdaMBExDzAN\n"
    "BgNVBAMMBnNlcnZlcjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABONGtt65U2cl\n"
    "wZd82W0YTCKlpuBa532wu80s68gNZ1IfdlTw/U6FWfz8wd+r9rcrsa/XhN0jJQAr\n"
    "xEhxdm11KCwwCgYIKoZIzj0EAwIDSQAwRgIhANWuVdAOup0Z4Z+YTPa+TKYXOXxC\n"
    "czzxIVWIochLSwQ5AiEAuorg6+Xrkk4hWIH98WceFViuFRRyBfMbpTd3Nbi69dQ=\n"
    "-----END CERTIFICATE-----\n";

static const char pem_server_key[] =
    "-----BEGIN PRIVATE KEY-----\n"
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgCNR5Rk6kemxrj5SU\n"
    "Z1YwcpUGU6lxrUOTacSkUzO3GpOhRANCAATjRrbeuVNnJcGXfNltGEwipabgWud9\n"
    "sLvNLOvIDWdSH3ZU8P1OhVn8/MHfq/a3K7Gv14TdIyUAK8RIcXZtdSgs\n"
    "-----END PRIVATE KEY-----\n";

static const char pem_client_cert[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBGjCBwQIUZ6LfHoLwt/Ediq/HO7W3+paeo7cwCgYIKoZIzj0EAwIwDTELMAkG\n"
    "A1UEAwwCY2EwIBcNMjYxMTIxMTMzODU3WhgPMjEwOTAxMTAxMzM4NTdaMBExDzAN\n"
    "BgNVBAMMBmNsaWVudDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABAO7kQgX7Dow\n"
    "kuV2tL6aj8d0aJsmVlM/dBBMxLuqEMUorxU+c5zjSjOlYRRm9TAeAunJZMjrkkS1\n"
    "3DDC6KyOsREwCgYIKoZIzj0EAwIDSAAwRQIga0dZIZbW+E+U8GbeIRwUwGer99WW\n"
    "NQHpIV06WbQ7GmsCIQDpJEoeEsHEO4wEGMrZeKXOWckSOKi+NnE5j9pMfh8Z8A==\n"
    "-----END CERTIFICATE-----\n";

static const char pem_client_key[] =
    "-----BEGIN PRIVATE KEY-----\n"
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgpMfslvWhPxtnmkG9\n"
    "XqmOd0VyYmAvREJj5PvcWRXYvNmhRANCAAQDu5EIF+w6MJLldrS+mo/HdGibJlZT\n"
    "P3QQTMS7qhDFKK8VPnOc40ozpWEUZvUwHgLpyWTI65JEtdwwwuisjrER\n"
    "-----END PRIVATE KEY-----\n";

static const char pem_old_crl[] =
    "-----BEGIN X509 CRL-----\n"
    "MIGlME4CAQEwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCY2EXDTIwMDEwMTAwMDAw\n"
    "MFoYDzIxMDAwMTAxMDAwMDAwWqAOMAwwCgYDVR0UBAMCAQEwCgYIKoZIzj0EAwID\n"
    "RwAwRAIgIMcQ/d03gF6BzA6U01O0XEA5AW4xdF3OHMJkQxxG74cCICIzhzlo25t5\n"
    "w98fTUFEmlqNkjh2LiJDoG3/2OhjduI3\n"
    "-----END X509 CRL-----\n";

static const char pem_delta_crl[] =
    "-----BEGIN X509 CRL-----\n"
    "MIG1MF0CAQEwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCY2EXDTI2MTEyMTEzNTEw\n"
    "OVoYDzIxMDkwMTEwMTM1MTA5WqAdMBswDQYDVR0bAQH/BAMCAQEwCgYDVR0UBAMC\n"
    "AQIwCgYIKoZIzj0EAwIDSAAwRQIgAhHkrgbVs0fW2AK9sx7jWr1vhx8OgDRYvRv3\n"
    "wpB1R4wCIQDBvGZywEp0lBD4kPq128PIwKxuu8EX8uTdV3TfUARRcA==\n"
    "-----END X509 CRL-----\n";

static const char pem_names[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIICszCCAlmgAwIBAgICAIAwCgYIKoZIzj0EAwIwgasxCzAJBgNVBAYTAkRFMRkw\n"
    "FwYDVQQKDBBFeCthbXBsZSwgIngiIFwxMQ4wDAYDVQQLDAUgbGVhZDEOMAwGA1UE\n"
    "CwwFI2hhc2gxFTATBgNVBAMMDErDvHJnZW47PMOpPjEUMBIGCSqGSIb3DQEJARYF\n"
    "YUBiLmMxEjAQBgoJkiaJk/IsZAEBDAJ1MTESMBAGCgmSJomT8ixkARkWAmRjMQww\n"
    "CgYDUwQFDANvZGQwIBcNMjYxMTIxMTM1MTA5WhgPMjEwOTAxMTAxMzUxMDlaMIGr\n"
    "MQswCQYDVQQGEwJERTEZMBcGA1UECgwQRXgrYW1wbGUsICJ4IiBcMTEOMAwGA1UE\n"
    "CwwFIGxlYWQxDjAMBgNVBAsMBSNoYXNoMRUwEwYDVQQDDAxKw7xyZ2VuOzzDqT4x\n"
    "FDASBgkqhkiG9w0BCQEWBWFAYi5jMRIwEAYKCZImiZPyLGQBAQwCdTExEjAQBgoJ\n"
    "kiaJk/IsZAEZFgJkYzEMMAoGA1MEBQwDb2RkMFkwEwYHKoZIzj0CAQYIKoZIzj0D\n"
    "AQcDQgAE40a23rlTZyXBl3zZbRhMIqWm4FrnfbC7zSzryA1nUh92VPD9ToVZ/PzB\n"
    "36v2tyuxr9eE3SMlACvESHF2bXUoLKNpMGcwMQYDVR0RBCowKIIJbG9jYWxob3N0\n"
    "hwR/AAABhxAAAAAAAAAAAAAAAAAAAAABgQN4QHkwEwYDVR0lBAwwCgYIKwYBBQUH\n"
    "AwEwHQYDVR0OBBYEFDqtXdKXganzHLKi0qSD8cy3PwCZMAoGCCqGSM49BAMCA0gA\n"
    "MEUCIQCyiKnQBdP+zOUxacOryVEiUt4W0X0IkDeQzM8Uo62bLgIgajcnZeIBLt35\n"
    "MRW5RKgBZNo2BzHDrV14fWcA7h5+Pxs=\n"
    "-----END CERTIFICATE-----\n";

#endif
