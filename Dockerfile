# m2df-run on a processor, with what cameras and the page need; docs/live.md says how to run it.
FROM python:3.11-slim
COPY . /m2df
RUN pip install --no-cache-dir '/m2df[cpu,mqtt,serve]' -c /m2df/constraints.txt && rm -rf /m2df && useradd m2df
USER m2df
# The first keeps memory flat over months. The second is writable for whatever user the container is run as; support
# banks are kept there where the clips are mounted read-only.
ENV MALLOC_ARENA_MAX=2 XDG_CACHE_HOME=/tmp
ENTRYPOINT ["m2df-run"]
