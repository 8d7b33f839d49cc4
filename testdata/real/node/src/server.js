const http = require("http");
const ms = require("ms");

http
  .createServer((request, response) => response.end(`__BUILT__: two days are ${ms("2 days")} ms\n`))
  .listen(3000, "127.0.0.1");
